"""The study `mnist-anytime`: a ResNet-8 on 5,000 digits."""

from dataclasses import replace

from amuse_lab.optimizers import SGD, AdamW, Amuse, MuonSGD, ScheduleFreeSGD
from amuse_lab.recipes.image import mnist_resnet8
from amuse_lab.studies.study import Entry, Scale, Study

_WARMUP = 30
_DECAY = Scale(1e-4, 1e-2)  # added to the gradient by SGD
_MUON_DECAY = Scale(1e-3, 0.1)  # decoupled for matrices
_MOMENTUM = Scale(0.85, 0.975, complement=True)
_POWERS = ("power 5", "power 7", "power 10", "power 14", "power 20")
_AVERAGED = ("x", "y", *_POWERS)
_PLAIN = ("x", *_POWERS)


def mnist_anytime() -> Study:
    """At which horizons is one AMUSE run on images as good as Muon, SGD and AdamW told where to end?"""
    muon = MuonSGD(lr=0.05, lr_rest=0.01, warmup_steps=_WARMUP)
    rates = {"lr": Scale(0.01, 0.2), "lr_rest": Scale(0.005, 0.2)}
    amuse = Amuse(lr=0.1, warmup_steps=_WARMUP, auxiliary="sgd")
    return Study(
        name="mnist-anytime",
        question="Is one run of an optimizer without a horizon, wherever it is stopped, as good as a run of "
        "Muon, SGD or AdamW that was tuned for exactly that number of steps?",
        run=replace(mnist_resnet8(), threads=1),
        horizons=(100, 200, 400, 800, 1600),
        warmup_steps=_WARMUP,
        kept=(5.0, 7.0, 10.0, 14.0, 20.0),
        beside="accuracy",
        entries=(
            Entry(
                "muon-sgd-cosine",
                muon,
                rates | {"weight_decay": _MUON_DECAY, "momentum": _MOMENTUM},
                _PLAIN,
                scheduled=True,
            ),
            Entry(
                "anytime",
                replace(
                    amuse,
                    matrices="normuon",
                    beta1=0.0,
                    rho=0.0,
                    momentum=0.9,
                    r=13.0,
                    lr_decay_from=3 * _WARMUP,
                ),
                rates | {"weight_decay": _MUON_DECAY, "lr_decay": Scale(0.35, 0.65)},
            ),
            Entry(
                "amuse",
                amuse,
                rates | {"weight_decay": _MUON_DECAY, "t0_steps": Scale(50, 800, whole=True)},
                _AVERAGED,
            ),
            Entry(
                "muon-decaying",
                replace(amuse, beta1=0.0, rho=0.0, momentum=0.9, lr_decay_from=3 * _WARMUP),
                rates | {"weight_decay": _MUON_DECAY, "lr_decay": Scale(0.3, 1.0)},
                _AVERAGED,
            ),
            Entry(
                "muon-sgd-constant",
                replace(muon, schedule="constant"),
                rates | {"weight_decay": _MUON_DECAY, "momentum": _MOMENTUM},
                _PLAIN,
            ),
            Entry(
                "sgd-cosine",
                SGD(lr=0.1, warmup_steps=_WARMUP),
                {"lr": Scale(0.02, 0.5), "weight_decay": _DECAY, "momentum": _MOMENTUM},
                _PLAIN,
                scheduled=True,
            ),
            Entry(
                "sf-sgd",
                ScheduleFreeSGD(lr=2.0, warmup_steps=_WARMUP),
                {
                    "lr": Scale(0.3, 10.0),
                    "weight_decay": _DECAY,
                    "beta1": Scale(0.8, 0.98, complement=True),
                },
                _AVERAGED,
            ),
            Entry(
                "adamw-cosine",
                AdamW(lr=0.005, warmup_steps=_WARMUP),
                {
                    "lr": Scale(0.001, 0.03),
                    "lr_rest": Scale(0.001, 0.03),
                    "weight_decay": Scale(0.01, 0.3),
                    "beta2": Scale(0.95, 0.999, complement=True),
                },
                _PLAIN,
                scheduled=True,
            ),
        ),
    )
