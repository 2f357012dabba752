"""What generated images are looked at with."""

import numpy as np
from PIL import Image

from jaxdl.run.inception import InceptionFeatures


class Pixels(InceptionFeatures):
    """Has pixels for features."""

    def __call__(self, images):
        return images.reshape(len(images), -1)


def read_picture(path):
    with Image.open(path) as image:
        return np.asarray(image)
