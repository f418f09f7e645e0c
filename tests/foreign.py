"""Networks as other people's factories give them, all of the shape of tests/tiny.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tiny import Tiny, tiny
from torch import nn
from torch.nn import functional as F


class Shaped(Tiny):
    """Tiny, whose output goes through a function; ``kind`` says which."""

    def __init__(self, kind: str, num_classes: int = 4) -> None:
        super().__init__(num_classes)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        x = self.bn1(self.conv(x)).relu()
        features = self.bn2(self.conv2(x)).relu().mean((2, 3))
        return SHAPES[self.kind](self.head(features), features)


@dataclass
class Record:
    features: torch.Tensor
    logits: torch.Tensor


class Named(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor


#: (logits, features) -> what is returned, whose logits are plain Tiny's
SHAPES: dict[str, Any] = {
    "tensor": lambda z, f: z,
    "features_first": lambda z, f: (f, z),
    "logits_first": lambda z, f: [z, f],
    "dict": lambda z, f: {"features": f, "logits": z},
    "dict_aux": lambda z, f: {"aux": z * 0.5, "out": z},
    "dict_other": lambda z, f: {"embedding": f, "y": z},
    "nested": lambda z, f: ((f, f[:, :3]), {"head": z}),
    "record": lambda z, f: Record(f, z),
    "named": lambda z, f: Named(z, z * 0.5),
    "maps_beside": lambda z, f: (z, f[:, :, None, None]),
    "softmax": lambda z, f: z.softmax(1),
    "log_softmax": lambda z, f: z.log_softmax(1),
    "softmax_half": lambda z, f: z.softmax(1).half(),
    "softmax_rounded": lambda z, f: z.softmax(1).mul(1000).round().div(1000),
    "softmax_tuple": lambda z, f: (f, z.softmax(1)),
    "softmax_dict": lambda z, f: {"logits": z.softmax(1)},
    # two classes, by one number an example; the first is what the others stand for
    "pair": lambda z, f: torch.stack([torch.zeros_like(z[:, 0]), 4 * z[:, 0]], 1),
    "column": lambda z, f: 4 * z[:, :1],
    "row": lambda z, f: 4 * z[:, 0],
    "squeezed": lambda z, f: (4 * z[:, :1]).squeeze(),
    "map": lambda z, f: 4 * z[:, :1, None, None],
    "probability": lambda z, f: (4 * z[:, :1]).sigmoid(),
    "column_in_dict": lambda z, f: {"features": f, "logits": 4 * z[:, :1]},
    # refused, or asked about
    "exits": lambda z, f: [z * 0.1, z * 0.5, z],
    "exits_dict": lambda z, f: {"early": z * 0.1, "late": z},
    "sigmoid": lambda z, f: (4 * z).sigmoid(),
    "one": lambda z, f: z[:, :1],
    "flat": lambda z, f: z[:, 0],
    "none": lambda z, f: None,
    "text": lambda z, f: "cat",
    "maps": lambda z, f: z[:, :, None, None],
    "background": lambda z, f: torch.cat([z[:, :1] - 20, z], 1),
}


def shaped(kind: str) -> Shaped:
    return Shaped(kind)


class Always(Tiny):
    """Does not leave its randomness, or the batch, alone in eval mode."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.drop = nn.Dropout(0.5)
        self.hidden = [nn.BatchNorm1d(8)] if kind == "hidden" else []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "noise":
            x = x + 0.1 * torch.randn_like(x)
        if self.kind == "forced":
            self.bn2.train()
        if self.kind == "rare" and torch.rand(()) < 0.3:
            x = x * 1.1
        x = self.bn1(self.conv(x)).relu()
        if self.kind == "centred":
            x = x - x.mean(0, keepdim=True)
        x = self.bn2(self.conv2(x)).relu().mean((2, 3))
        if self.kind == "functional":
            x = F.dropout(x, 0.5)
        if self.kind == "module":
            x = self.drop.train()(x)
        if self.kind == "hidden":
            x = self.hidden[0](x)
        return self.head(x)

    def train(self, mode: bool = True) -> Always:
        return super().train(mode or self.kind == "stays")


class Stays(Always):
    """eval() does nothing."""


def always(kind: str) -> nn.Module:
    model = Always(kind)
    if kind == "seeded":  # draws a number that changes nothing
        model.register_forward_pre_hook(lambda *_: torch.rand(1) and None)
    return model


class Partial(Tiny):
    """Writes only what it likes into its state dict, and more."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        for key in ("bn1.weight", "bn1.running_mean"):
            del state[key]
        return state | {"note": "kept by hand"} if isinstance(state, dict) else state

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({k: v for k, v in state.items() if k != "note"}, strict=False)


def partial() -> nn.Module:
    return Partial()


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.LazyLinear(4),
    )  # fmt: skip


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return tiny()


def meta_buffer() -> nn.Module:
    model = on_meta()
    model.register_buffer("mask", torch.ones(3, device="meta"), persistent=False)
    return model


def half_meta() -> nn.Module:
    model = tiny()
    model.head.to("meta")
    return model


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(tiny())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def compiled_in_place() -> nn.Module:
    model = tiny()
    model.compile()
    return model


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(tiny().eval(), {nn.Linear}, dtype=torch.qint8)


class NoMove(Tiny):
    def to(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("`.to` is not supported for this model")


class NoState(Tiny):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no state for you")


class NoEval(Tiny):
    def eval(self) -> Any:
        raise NotImplementedError("Calling eval() is not supported yet.")


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.BatchNorm2d(3)


class Exits(SystemExit):
    pass


def raising(kind: str) -> Any:
    raise {
        "exit": SystemExit(3),
        "key": KeyError("weights"),
        "type": TypeError("unsupported operand type(s)"),
        "assert": AssertionError(),
        "os": OSError("no route to host"),
        "recursion": RecursionError("maximum recursion depth exceeded"),
        "empty": Exception(),
    }[kind]


def needs(depth: int) -> nn.Module:
    return tiny(width=depth)


def frozen() -> nn.Module:
    return tiny().train().requires_grad_(False)


def double() -> nn.Module:
    return tiny().double()


def brain() -> nn.Module:
    return tiny().bfloat16()


def given(kind: str) -> Any:
    """What factories give that is no plain network."""
    if kind == "exported":
        return torch.export.export(tiny().eval(), (torch.zeros(2, 3, 12, 12),))
    if kind == "exported_module":
        return torch.export.export(tiny().eval(), (torch.zeros(2, 3, 12, 12),)).module()
    makers: dict[str, Any] = {
        "parallel": lambda: nn.DataParallel(tiny()),
        "compiled": lambda: torch.compile(tiny()),
        "compiled_parallel": lambda: torch.compile(nn.DataParallel(tiny())),
        "inner_compiled": Inner,
        "in_place": compiled_in_place,
        "fx": lambda: torch.fx.symbolic_trace(tiny()),
        "tuple": lambda: (tiny(), None, "transform"),
        "class": lambda: Tiny,
        "script": lambda: torch.jit.script(tiny()),
        "trace": lambda: torch.jit.trace(tiny().eval(), torch.zeros(1, 3, 12, 12)),
        "none": lambda: None,
        "text": lambda: "resnet18",
        "state": lambda: dict(tiny().state_dict()),
        "dict": lambda: {"model": tiny()},
        "two": lambda: (tiny(), tiny()),
        "list": lambda: [],
        "function": lambda: lambda x: x,
        "list_of_modules": lambda: nn.ModuleList([tiny()]),
        "no_forward": NoForward,
        "no_move": NoMove,
        "no_state": NoState,
        "no_eval": NoEval,
        "frozen": frozen,
        "double": double,
        "bfloat16": brain,
        "quantised": quantised,
    }
    return makers[kind]()
