"""What the paper reports of AMUSE, for comparison: none of it was measured here."""

PAPER = (
    "From [arXiv 2605.22432](https://arxiv.org/abs/2605.22432), as others quote it; none of it was measured "
    "here. Its released runs have one seed and a published setting each, "
    "on FineWeb (124 M, 720 M and 1.3 B parameters) and on images, far above the size of the studies here."
)

FIGURES = (
    "124 M parameters: a perplexity 0.6 below Muon's, 1.5 below Schedule-Free AdamW's and 4.5 below AdamW's.",
    "720 M parameters: Muon's final loss in 1 / 1.51 of the steps.",
    "1.3 B parameters: the lowest loss throughout.",
    "ResNet-50 on ImageNet: 1 / 1.12 of the steps; fine-tuning a masked-autoencoder ViT: 1 / 3.08 of them.",
    "A step takes 1.067 times as long as one of AdamW.",
)
