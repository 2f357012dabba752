"""Batched image augmentations: pure JAX, inside the compiled step, no loop over examples.

Images are float32 in [0, 1], shaped [b, h, w, c]. What draws takes its key first, as in
`jax.random`; draws are made for each example, and depend on the key and the batch size alone.
Arguments are checked while tracing, so a mistake costs no step.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxdl.types import Key

Images = Float[Array, "b h w c"]
PerImage = Float[Array, "b"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which Pillow and torchvision take for grey


def to_float(images: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Computes images / 255: uint8 in [0, 255] to float32 in [0, 1]."""
    _require(images.dtype == jnp.uint8, f"to_float takes uint8 images, got {images.dtype}")
    return images.astype(jnp.float32) / 255


def to_channels(images: Images, channels: int) -> Float[Array, "b h w channels"]:
    """Repeats grey images to `channels` channels, or mixes colours to grey (ITU-R 601 luma) for 1.

    Images that have that many already stay as they are. Raises ValueError where there is no way.
    """
    *rest, c = _shape(images)
    if (c, channels) == (3, 1):
        return (images * jnp.array(_LUMA)).sum(-1, keepdims=True)
    what = "only grey is repeated, and only colours are mixed to grey"
    _require(c in (1, channels), f"cannot make {channels} channels of {c}: {what}")
    return jnp.broadcast_to(images, (*rest, channels))


def normalise(
    images: Images, mean: float | Sequence[float], std: float | Sequence[float]
) -> Images:
    """Computes (images - mean) / std, with one number for all channels or one for each."""
    centre, width = _per_channel(images, mean=mean, std=std)
    _require(bool((width > 0).all()), f"std must be positive, got {std}")
    return (images - centre) / width


def denormalise(
    images: Images, mean: float | Sequence[float], std: float | Sequence[float]
) -> Images:
    """Computes images * std + mean, the inverse of `normalise`."""
    centre, width = _per_channel(images, mean=mean, std=std)
    return images * width + centre


def resize(images: Images, size: tuple[int, int]) -> Float[Array, "b height width c"]:
    """Resizes to `size` = (height, width) in pixels: bilinear, antialiased, as Pillow's BILINEAR.

    out = V image H^T for each channel, where the rows of V and H are triangles that reach one
    pixel of the input, or of the output where that is the coarser, and sum to 1. Any float range.
    """
    b, _, _, c = _shape(images)
    _require(min(size) > 0, f"the size must be positive, got {size}")
    return jax.image.resize(images, (b, *size, c), "bilinear", antialias=True)


def flip(key: Key, images: Images) -> Images:
    """Mirrors each image left to right with probability 1/2."""
    b, *_ = _shape(images)
    coin = jax.random.bernoulli(key, shape=(b, 1, 1, 1))
    return jnp.where(coin, images[:, :, ::-1], images)


def pad_and_crop(key: Key, images: Images, padding: int) -> Images:
    """Pads each image with `padding` zeros on every side, and crops its own size anywhere.

    The crop's offset is uniform over the (2 padding + 1)^2 places.
    """
    b, h, w, _ = _shape(images)
    _require(padding >= 0, f"padding must not be negative, got {padding}")
    offset = jax.random.randint(key, (2, b, 1, 1), -padding, padding + 1)
    return _pixels(images, jnp.arange(h)[:, None] + offset[0], jnp.arange(w) + offset[1])


def jitter(key: Key, images: Images, *, brightness: float, contrast: float) -> Images:
    """Changes brightness and contrast, in an order random per image, as torchvision's ColorJitter.

    The factors f are uniform in [1 - x, 1 + x] for x = `brightness` and x = `contrast`, both in
    [0, 1]. Each of the two steps computes clip(base + f (image - base), 0, 1), with base 0 for
    brightness, and for contrast the image's mean grey at that moment. Takes 1 or 3 channels.
    """
    b, *_, c = _shape(images)
    _require(c in (1, 3), f"jitter takes 1 or 3 channels, got {c}")
    for name, spread in (("brightness", brightness), ("contrast", contrast)):
        _require(0 <= spread <= 1, f"{name} must lie in [0, 1], got {spread}")
    brightness_key, contrast_key, order_key = jax.random.split(key, 3)
    brightness_factor = _uniform(brightness_key, b, 1 - brightness, 1 + brightness)
    contrast_factor = _uniform(contrast_key, b, 1 - contrast, 1 + contrast)
    contrast_first = jax.random.bernoulli(order_key, shape=(b,))
    for contrast_now in (contrast_first, ~contrast_first):
        base = jnp.where(contrast_now, _mean_grey(images), 0)[:, None, None, None]
        factor = jnp.where(contrast_now, contrast_factor, brightness_factor)[:, None, None, None]
        images = jnp.clip(base + factor * (images - base), 0, 1)
    return images


def rotate(key: Key, images: Images, degrees: float) -> Images:
    """Rotates each image by its own angle, uniform in [-degrees, degrees], as `rotate_by`."""
    b, *_ = _shape(images)
    _require(0 <= degrees <= 180, f"degrees must lie in [0, 180], got {degrees}")
    return rotate_by(images, _uniform(key, b, -degrees, degrees))


def rotate_by(images: Images, degrees: PerImage) -> Images:
    """Rotates each image about its centre, counter-clockwise, by its own angle.

    As `PIL.Image.rotate(angle, NEAREST)`, and like it in 16.16 fixed point, so that the same
    pixel wins a near tie: out[y, x] = image[floor(L (y, x) + 1/2)], 0 outside the image.
    """
    _, h, w, _ = _shape(images)
    _require(max(h, w) < 2**14, f"rotate takes sides below {2**14} pixels, got {h}x{w}")
    inverse = _about_centre(_inverse(degrees), h, w)
    fixed = jnp.floor(inverse * 2**16 + 0.5).astype(jnp.int32)
    y, x = ((at + 2**15) >> 16 for at in _sources(fixed, h, w))
    return _pixels(images, y, x)


def affine(
    key: Key,
    images: Images,
    *,
    degrees: float = 0.0,
    translate: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shear: float = 0.0,
) -> Images:
    """Shears, scales, rotates and shifts each image, in that order, bilinear, with 0 outside.

    All are uniform for each image: the angle in [-degrees, degrees], counter-clockwise about the
    centre; the shift in [-translate, translate], a fraction of the image's sides; the scale in
    [low, high]; the angle of the horizontal shear in [-shear, shear] degrees.
    """
    b, h, w, _ = _shape(images)
    _require(0 <= degrees <= 180, f"degrees must lie in [0, 180], got {degrees}")
    _require(0 <= translate <= 1, f"translate must lie in [0, 1], got {translate}")
    _require(0 < scale[0] <= scale[1], f"scale must be 0 < low <= high, got {scale}")
    _require(0 <= shear < 90, f"shear must lie in [0, 90), got {shear}")
    keys = jax.random.split(key, 4)
    angles = _uniform(keys[0], b, -degrees, degrees)
    scales = _uniform(keys[1], b, *scale)
    shears = _uniform(keys[2], b, -shear, shear)
    sides = jnp.array([w, h], jnp.float32)
    shift = jax.random.uniform(keys[3], (b, 2), minval=-translate, maxval=translate) * sides
    inverse = _about_centre(_inverse(angles, scales, shears), h, w, shift)
    return sample(images, *_sources(inverse, h, w))


def elastic(key: Key, images: Images, *, alpha: float, sigma: float) -> Images:
    """Displaces every pixel by a smooth random field; bilinear, with 0 outside.

    Each coordinate of the field is alpha G * U: noise U uniform in [-1, 1], smoothed by a Gaussian
    of `sigma` pixels and scaled by `alpha` pixels (Simard et al. 2003, "Best practices for
    convolutional neural networks applied to visual document analysis", section 2).
    """
    b, h, w, _ = _shape(images)
    _require(alpha >= 0 and sigma > 0, f"wants alpha >= 0 and sigma > 0, got {alpha} and {sigma}")
    noise = jax.random.uniform(key, (2, b, h, w), minval=-1, maxval=1)
    blurs = _gaussian(h, sigma), _gaussian(w, sigma)
    dy, dx = alpha * jnp.einsum("ibhw,yh,xw->ibyx", noise, *blurs, precision="highest")
    return sample(images, jnp.arange(h)[:, None] + dy, jnp.arange(w) + dx)


def erase(
    key: Key,
    images: Images,
    *,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    probability: float = 0.5,
) -> Images:
    """Sets a random rectangle of an image to 0, with some probability (Zhong et al. 2017).

    The rectangle's area is uniform in `area`, a fraction of the image's; its height over its width
    is log-uniform in `ratio`; its place is uniform among those inside the image (arXiv:1708.04896,
    algorithm 1). A side longer than the image's is cut to it, where the paper draws again.
    """
    b, h, w, _ = _shape(images)
    _require(0 < area[0] <= area[1] <= 1, f"area must be 0 < low <= high <= 1, got {area}")
    _require(0 < ratio[0] <= ratio[1], f"ratio must be 0 < low <= high, got {ratio}")
    _require(0 <= probability <= 1, f"probability must lie in [0, 1], got {probability}")
    keys = jax.random.split(key, 4)
    areas = _uniform(keys[0], b, *area) * (h * w)
    ratios = jnp.exp(_uniform(keys[1], b, math.log(ratio[0]), math.log(ratio[1])))
    place = jax.random.uniform(keys[2], (2, b))
    chosen = jax.random.bernoulli(keys[3], probability, (b, 1, 1))

    def covered(extent: PerImage, place: PerImage, size: int):
        extent = jnp.clip(jnp.round(extent), 1, size)
        start = jnp.floor(place * (size - extent + 1))
        past_start = jnp.arange(size) - start[:, None]
        return (past_start >= 0) & (past_start < extent[:, None])

    rows = covered(jnp.sqrt(areas * ratios), place[0], h)
    columns = covered(jnp.sqrt(areas / ratios), place[1], w)
    hidden = chosen & rows[:, :, None] & columns[:, None, :]
    return jnp.where(hidden[..., None], 0, images)


def sample(images: Images, y: Float[Array, "b y x"], x: Float[Array, "b y x"]) -> Array:
    """Reads images between their pixels, bilinearly: [b, y, x, c] at rows `y` and columns `x`.

    The pixel [i, j] lies at (i, j) exactly; all beyond the image is 0.
    """
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    weights = jnp.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1
    )
    rows = jnp.stack([top, top, top + 1, top + 1], axis=1).astype(jnp.int32)
    columns = jnp.stack([left, left + 1, left, left + 1], axis=1).astype(jnp.int32)
    return (weights[..., None] * _pixels(images, rows, columns)).sum(1)


def _pixels(images: Images, y: Int[Array, "b ..."], x: Int[Array, "b ..."]) -> Array:
    """Gathers images[i, y[i], x[i]], 0 where that lies outside: the one gather of this module."""
    b, h, w, c = images.shape
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    index = jnp.where(inside, y * w + x, 0)
    flat = images.reshape(b, h * w, c)
    pixels = jax.vmap(lambda image, at: image.at[at].get(mode="promise_in_bounds"))(flat, index)
    return jnp.where(inside[..., None], pixels, 0)


def _inverse(
    degrees: PerImage, scale: PerImage | float = 1.0, shear: PerImage | float = 0.0
) -> Float[Array, "b 2 2"]:
    """Returns the map from (x, y), y downwards, in the output to that in the input."""
    cos, sin = jnp.cos(jnp.radians(degrees)), jnp.sin(jnp.radians(degrees))
    tan = jnp.tan(jnp.radians(shear))
    rows = [[(cos - tan * sin) / scale, (-sin - tan * cos) / scale], [sin / scale, cos / scale]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _about_centre(
    inverse: Float[Array, "b 2 2"], h: int, w: int, shift: Float[Array, "b 2"] | float = 0.0
) -> Float[Array, "b 2 3"]:
    """Appends the offset that keeps the centre in place, but for `shift`: (I - L) centre - L shift.

    Written as a sum, not as a product of matrices, which a GPU would compute in TF32.
    """
    centre = np.array([(w - 1) / 2, (h - 1) / 2], np.float32)
    still = ((jnp.eye(2) - inverse) * centre).sum(-1)
    offset = still - (inverse * jnp.broadcast_to(shift, still.shape)[:, None]).sum(-1)
    return jnp.concatenate([inverse, offset[..., None]], axis=-1)


def _sources(matrix: Array, h: int, w: int) -> tuple[Array, Array]:
    """Returns for each output pixel its (y, x) in the input, in the type of `matrix`."""
    m = matrix[..., None, None]
    row, column = jnp.arange(h, dtype=m.dtype)[:, None], jnp.arange(w, dtype=m.dtype)
    x, y = (m[:, i, 0] * column + m[:, i, 1] * row + m[:, i, 2] for i in (0, 1))
    return y, x


def _mean_grey(images: Images) -> PerImage:
    means = images.mean((1, 2))
    return means[:, 0] if means.shape[-1] == 1 else (means * jnp.array(_LUMA)).sum(-1)


def _gaussian(size: int, sigma: float) -> np.ndarray:
    """Returns the [size, size] matrix that blurs one axis, with 0 beyond its ends."""
    at = np.arange(size)
    density = np.exp(-(((at[:, None] - at) / sigma) ** 2) / 2)
    return (density / (sigma * math.sqrt(2 * math.pi))).astype(np.float32)


def _uniform(key: Key, b: int, low: float, high: float) -> PerImage:
    return jax.random.uniform(key, (b,), minval=low, maxval=high)


def _per_channel(images: Images, **given: float | Sequence[float]) -> list[np.ndarray]:
    c, values = _shape(images)[-1], [np.asarray(x, np.float32) for x in given.values()]
    for name, x in zip(given, values, strict=True):
        _require(x.shape in ((), (1,), (c,)), f"{name} has shape {x.shape}, for {c} channels")
    return values


def _shape(images: Images) -> tuple[int, int, int, int]:
    ok = images.ndim == 4 and jnp.issubdtype(images.dtype, jnp.floating)
    _require(ok, f"takes float images [b, h, w, c], got {images.dtype}{list(images.shape)}")
    b, h, w, c = images.shape
    return b, h, w, c


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
