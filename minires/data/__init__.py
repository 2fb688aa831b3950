"""Images with labels: datasets, augmentation and batches, as NumPy arrays.

train = minires.data.digits("train")
for x, y in minires.data.Loader(train, batch_size=128, shuffle=True):
    ...                                     # x float32 (N, C, H, W), y int64 (N,)
"""

from minires.data import transforms
from minires.data.cifar import cifar10, cifar100
from minires.data.dataset import Dataset, channel_stats, per_pixel_mean
from minires.data.folder import image_folder
from minires.data.loader import Loader
from minires.data.optdigits import digits
from minires.data.registry import list_datasets, load

__all__ = [
    "Dataset",
    "Loader",
    "channel_stats",
    "cifar10",
    "cifar100",
    "digits",
    "image_folder",
    "list_datasets",
    "load",
    "per_pixel_mean",
    "transforms",
]
