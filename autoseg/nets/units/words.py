"""The vocabulary of units: (B, cin, *S) -> (B, cout, *S).

A unit is built as unit(kit, cin, cout), with its settings as keywords. It never changes the grid,
so that any of them fits into any position of the sentence.
"""

from collections.abc import Callable

from torch import nn

from autoseg.nets.units import (
    attention,
    branches,
    chains,
    hybrid_mamba,
    light,
    mamba,
    mednext,
    plain,
    preactivated,
)

Unit = Callable[..., nn.Module]

UNITS: dict[str, Unit] = {
    "plain": plain.plain,
    "pair": plain.pair,
    "bottleneck": chains.bottleneck,
    "grouped": chains.grouped,
    "dense": chains.dense,
    "dilated": chains.dilated,
    "csp": chains.csp,
    "inception": branches.inception,
    "inception_dilated": branches.inception_dilated,
    "dense_atrous": branches.dense_atrous,
    "pyramid": branches.pyramid,
    "pooled_pyramid": branches.pooled_pyramid,
    "multi_scale_residual": branches.multi_scale_residual,
    "residual_path": branches.residual_path,
    "pyramid_split": branches.pyramid_split,
    "split_attention": branches.split_attention,
    "separable": light.separable,
    "mbconv": light.mbconv,
    "convnext": light.convnext,
    "attention": attention.attention,
    "swin": attention.swin,
    "mednext": mednext.mednext,
    "bare": preactivated.bare,
    "norm_act": preactivated.norm_act,
    "preact": preactivated.preact,
    "mamba": mamba.mamba,
    "mamba_both": mamba.mamba_both,
    "mamba_cross": mamba.mamba_cross,
    "hc_mamba": hybrid_mamba.hc_mamba,
    "gated_spatial": hybrid_mamba.gated_spatial,
    "seg_mamba": hybrid_mamba.seg_mamba,
}
