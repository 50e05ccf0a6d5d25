"""What the paper reports of AMUSE, for comparison: none of it was measured here."""

PAPER = (
    "What the paper ([arXiv 2605.22432](https://arxiv.org/abs/2605.22432)) reports, as quoted by its "
    "readers; none of it was measured here. Its released runs have one seed and a published setting each, "
    "on FineWeb (124 M, 720 M and 1.3 B parameters) and on images, far above the size of the studies here."
)

FIGURES = (
    "124 M parameters: a perplexity 0.6 below Muon's, 1.5 below Schedule-Free AdamW's and 4.5 below AdamW's.",
    "720 M parameters: Muon's final loss in 1.51 times fewer steps.",
    "1.3 B parameters: the lowest loss throughout.",
    "ResNet-50 on ImageNet: 1.12 times fewer steps; fine-tuning a masked-autoencoder ViT: 3.08 times fewer.",
    "A step takes 1.067 times as long as one of AdamW.",
)

OTHERS = (
    "Others report a match and no win against tuned Muon (on the hypersphere, with linear decay) for a "
    "mixture of experts 512 wide, where a growing beta from 0.6 closed the gap that a constant one left."
)
