"""What each corruption does to pixels.

Images are uint8 (N, C, H, W), C = 1 or 3, each with a generator of random numbers of its own, so that a result does
not depend on the batch: what is computed over several images is exact, or goes element by element. Functions of one
image (C, H, W) are those for which that is no slower. Values x are in 0..1; they are rounded, where the published
images are cut off, and ``elastic`` resamples once where the published code does so twice.

Source: as ``corruptions``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage, signal
from torch.nn import functional as F

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]
Parameters = tuple[float, ...]
Randoms = Sequence[Generator]

#: weights of a kernel up to which it is applied one by one
FEW = 81


def _values(images: Pixels) -> Values:
    return images.astype(np.float32) / np.float32(255)


def _pixels(values: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return pixels


# --- noise -----------------------------------------------------------------------------------


def _normal(images: Pixels, randoms: Randoms) -> Values:
    """Standard normal numbers for each value of the images."""
    drawn = np.empty(images.shape, np.float32)
    for image, random in zip(drawn, randoms, strict=True):
        random.standard_normal(out=image, dtype=np.float32)
    return drawn


def gaussian_noise(images: Pixels, parameters: Parameters, randoms: Randoms) -> Pixels:
    """x + σ·z, z standard normal."""
    (sigma,) = parameters
    return _pixels(_values(images) + np.float32(sigma) * _normal(images, randoms))


def shot_noise(image: Pixels, parameters: Parameters, random: Generator) -> Pixels:
    """Poisson(x·c) / c: c photons make the brightest value."""
    (photons,) = parameters
    return _pixels(random.poisson(_values(image) * photons) / photons)


def impulse_noise(image: Pixels, parameters: Parameters, random: Generator) -> Pixels:
    """A share p of the values becomes 0 or 255, each as often."""
    (share,) = parameters
    drawn = random.random(image.shape, np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn > 1 - share / 2, 255, image)).astype(np.uint8)


def speckle_noise(images: Pixels, parameters: Parameters, randoms: Randoms) -> Pixels:
    """x + x·σ·z, z standard normal."""
    (sigma,) = parameters
    return _pixels(_values(images) * (1 + np.float32(sigma) * _normal(images, randoms)))


# --- blur ------------------------------------------------------------------------------------


def gaussian_blur(images: Pixels, parameters: Parameters, _: Randoms) -> Pixels:
    """Convolution with a Gaussian of standard deviation σ pixels; borders are repeated."""
    (sigma,) = parameters
    return _pixels(ndimage.gaussian_filter(_values(images), (0, 0, sigma, sigma), mode="nearest"))


def defocus_blur(images: Pixels, parameters: Parameters, _: Randoms) -> Pixels:
    """Convolution with a disk of radius r whose edge a Gaussian of standard deviation σ makes smooth."""
    kernel = _disk(*parameters)
    reach = len(kernel) // 2
    margins = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    padded = np.pad(_values(images), margins, mode="reflect")
    if kernel.size > FEW:  # a transform of several images at once rounds in another way
        blurred = [signal.fftconvolve(each, kernel[None], mode="valid", axes=(1, 2)) for each in padded]
        return _pixels(np.stack(blurred))
    height, width = images.shape[2:]
    total = np.zeros(images.shape, np.float32)
    for row, column in np.argwhere(kernel > 0):
        total += kernel[row, column] * padded[:, :, row : row + height, column : column + width]
    return _pixels(total)


def _disk(radius: float, sigma: float) -> Values:
    smooth = 1 if radius <= 8 else 2  # reach of the Gaussian, as published
    reach = math.floor(radius) + smooth
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).astype(np.float32)
    weights = np.exp(-(np.arange(-smooth, smooth + 1) ** 2) / (2 * max(sigma, 1e-3) ** 2))
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, weights / weights.sum(), axis, mode="constant")
    kernel: Values = disk / disk.sum()
    return kernel


def motion_blur(image: Pixels, parameters: Parameters, random: Generator) -> Pixels:
    """A mean along a line: Σ_i w_i x(p + i·u), w_i ∝ exp(−i²/2σ²), i up to twice the radius.

    The direction u lies within 45° of the rows. As in ImageMagick the line begins at the pixel, and the image's
    edge goes on beyond it.
    """
    radius, sigma = parameters
    angle = math.radians(random.uniform(-45, 45))
    along = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(along**2) / (2 * sigma**2))
    rows, columns = (np.ceil(along * step(angle) - 0.5).astype(int) for step in (math.sin, math.cos))
    height, width = image.shape[1:]
    up, left = -min(0, rows.min()), -min(0, columns.min())
    margins = ((0, 0), (up, max(0, rows.max())), (left, max(0, columns.max())))
    padded = np.pad(_values(image), margins, mode="edge")
    blurred = np.zeros(image.shape, np.float32)
    for weight, row, column in zip((weights / weights.sum()).astype(np.float32), rows, columns, strict=True):
        blurred += weight * padded[:, row + up : row + up + height, column + left : column + left + width]
    return _pixels(blurred)


def zoom_blur(images: Pixels, parameters: Parameters, _: Randoms) -> Pixels:
    """The mean of the image and of its centre enlarged by 1, 1 + step, ..., below ``stop``."""
    stop, step = parameters
    values = _values(images)
    factors = np.arange(1, stop, step)
    total = values.copy()
    for factor in factors:
        enlarged = values
        for axis in (2, 3):
            enlarged = _enlarged(enlarged, factor, axis)
        total += enlarged
    return _pixels(total / np.float32(len(factors) + 1))


def _enlarged(values: Values, factor: float, axis: int) -> Values:
    """The centre enlarged along one axis by linear interpolation, as long as before."""
    side = values.shape[axis]
    inner = math.ceil(side / factor)
    outer = max(side, round(inner * factor))
    places = np.arange(side) + (outer - side) // 2  # of those that are kept, in the enlarged part
    places = places * ((inner - 1) / max(outer - 1, 1))
    below = np.minimum(places.astype(int), max(inner - 2, 0))
    share = (places - below).astype(np.float32).reshape([-1 if k == axis else 1 for k in range(4)])
    lower = np.take(values, below + (side - inner) // 2, axis)
    upper = np.take(values, np.minimum(below + 1, inner - 1) + (side - inner) // 2, axis)
    enlarged: Values = lower + share * (upper - lower)
    return enlarged


# --- weather and light -----------------------------------------------------------------------


def fog(images: Pixels, parameters: Parameters, randoms: Randoms) -> Pixels:
    """(x + c·f) · m / (m + c): f a plasma fractal in 0..1, m the brightest value of the image."""
    strength, decay = parameters
    values = _values(images)
    brightest = values.max(axis=(1, 2, 3), keepdims=True)
    height, width = images.shape[2:]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    plasma = _plasma(side, decay, randoms)[:, None, :height, :width].astype(np.float32)
    return _pixels(
        (values + np.float32(strength) * plasma) * (brightest / (brightest + np.float32(strength)))
    )


def _plasma(side: int, decay: float, randoms: Randoms) -> NDArray[np.float64]:
    """Height maps (N, side, side) in 0..1 by the diamond-square algorithm on a torus; side is a power of two.

    Each point is the mean of four neighbours, a step apart, and a uniform number within ±a². The step halves and
    a shrinks by ``decay`` from one round to the next.
    """
    heights = np.zeros((len(randoms), side, side))
    step, amplitude = side, 100.0
    while step >= 2:
        half, most = step // 2, amplitude**2
        corners, centres = heights[:, ::step, ::step], heights[:, half::step, half::step]
        shape = corners.shape[1:]
        noise = np.stack([random.uniform(-most, most, (3, *shape)) for random in randoms], axis=1)
        pairs = corners + np.roll(corners, -1, 1)
        centres[:] = (pairs + np.roll(pairs, -1, 2)) / 4 + noise[0]
        above, beside = centres + np.roll(centres, 1, 1), centres + np.roll(centres, 1, 2)
        heights[:, ::step, half::step] = (above + corners + np.roll(corners, -1, 2)) / 4 + noise[1]
        heights[:, half::step, ::step] = (beside + corners + np.roll(corners, -1, 1)) / 4 + noise[2]
        step, amplitude = half, amplitude / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    highest: NDArray[np.float64] = heights / heights.max(axis=(1, 2), keepdims=True)
    return highest


def brightness(images: Pixels, parameters: Parameters, _: Randoms) -> Pixels:
    """V of HSV becomes V + c; with the same hue and saturation each channel is multiplied by (V + c) / V."""
    (more,) = parameters
    values = _values(images)
    value = values.max(axis=1, keepdims=True)
    brighter = np.minimum(value + np.float32(more), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _pixels(np.where(value > 0, values * (brighter / value), brighter))


def contrast(images: Pixels, parameters: Parameters, _: Randoms) -> Pixels:
    """(x − m)·c + m with m the mean of the channel over the image."""
    (factor,) = parameters
    count = images.shape[2] * images.shape[3]
    means = (images.sum(axis=(2, 3), dtype=np.int64, keepdims=True) / (255 * count)).astype(np.float32)
    return _pixels((_values(images) - means) * np.float32(factor) + means)


def saturate(images: Pixels, parameters: Parameters, _: Randoms) -> Pixels:
    """S of HSV becomes a·S + b; with the same hue and value V a channel is V − (V − x)·S′/S.

    Grey pixels have no hue. As in ImageNet-C they count as red: a b above 0 tints them.
    """
    factor, more = parameters
    if images.shape[1] == 1:
        return images.copy()
    values = _values(images)
    value = values.max(axis=1, keepdims=True)
    below = value - values
    with np.errstate(divide="ignore", invalid="ignore"):
        saturation = np.where(value > 0, below.max(axis=1, keepdims=True) / value, 0)
        wanted = np.clip(saturation * np.float32(factor) + np.float32(more), 0, 1)
        red = value * np.array([0, 1, 1], np.float32)[:, None, None]
        return _pixels(value - wanted * np.where(saturation > 0, below / saturation, red))


# --- geometry and coding ---------------------------------------------------------------------


def elastic(image: Pixels, parameters: Parameters, random: Generator) -> Pixels:
    """x(A⁻¹(p + d)): A an affine map, d a random field of displacements, both in pixels.

    A moves three points around the centre by up to ``shift``. The field is white noise in ±1, smoothed by a
    Gaussian of standard deviation σ, times α. Bilinear; borders are mirrored.
    """
    alpha, sigma, shift = parameters
    height, width = image.shape[1:]
    centre, square = np.array([width // 2, height // 2], float), float(max(1, min(height, width) // 3))
    points = centre + square * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + random.uniform(-shift, shift, points.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)  # (3, 2): from (x, y, 1)
    field = alpha * _smooth(random.uniform(-1, 1, (2, height, width)), sigma)
    x, y = np.arange(width) + field[0], np.arange(height)[:, None] + field[1]
    places = [x * back[0, k] + y * back[1, k] + back[2, k] for k in (0, 1)]
    # From −1 at the first pixel's centre to 1 at the last's.
    grid = np.stack(
        [2 * place / max(side - 1, 1) - 1 for place, side in zip(places, (width, height), strict=True)], -1
    )
    warped = F.grid_sample(
        torch.from_numpy(_values(image))[None],
        torch.from_numpy(grid.astype(np.float32))[None],
        padding_mode="reflection",
        align_corners=True,
    )
    return _pixels(warped[0].numpy())


def _smooth(fields: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Fields (n, H, W) after a Gaussian with mirrored borders: a product of their cosine transform, at any σ."""
    spectrum = fft.dctn(fields, axes=(1, 2))
    for axis in (1, 2):
        frequency = np.arange(fields.shape[axis]) * (math.pi * sigma / fields.shape[axis])
        spectrum *= np.exp(-(frequency**2) / 2).reshape([-1 if k == axis else 1 for k in range(3)])
    smooth: NDArray[np.float64] = fft.idctn(spectrum, axes=(1, 2))
    return smooth


def pixelate(image: Pixels, parameters: Parameters, _: Generator) -> Pixels:
    """Made smaller by a factor, and as large as before, by mean over boxes both times."""
    (factor,) = parameters
    height, width = image.shape[1:]
    picture = _picture(image)
    small = picture.resize((max(1, int(width * factor)), max(1, int(height * factor))), Image.Resampling.BOX)
    return _of_picture(small.resize((width, height), Image.Resampling.BOX))


def jpeg(image: Pixels, parameters: Parameters, _: Generator) -> Pixels:
    """Written as JPEG at a quality, and read again."""
    (quality,) = parameters
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as picture:
        return _of_picture(picture)


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def _of_picture(picture: Image.Image) -> Pixels:
    pixels = np.asarray(picture)
    return pixels[None].copy() if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
