"""Normal data, of which all is known: the best denoiser, and where the probability flow leads."""

import numpy as np

MEAN, STD = 0.4, 0.6


def best(schedule):
    """E[x_0 | x] for x_0 ~ N(MEAN, STD^2): the best denoiser there is, affine in x."""

    def denoise(x, time):
        alpha, sigma = schedule.level(time).like(x)
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)

    return denoise


def flow(level, x, at=-1):
    """Where the probability flow takes x from the first of the levels to level number `at`.

    It keeps the quantile: (x - alpha MEAN) over the standard deviation of x stays what it is.
    """
    alpha, sigma = np.asarray(level.alpha), np.asarray(level.sigma)
    spread = np.hypot(alpha * STD, sigma)
    return alpha[at] * MEAN + spread[at] / spread[0] * (np.asarray(x) - alpha[0] * MEAN)
