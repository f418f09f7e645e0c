"""Norm-free paths to the output, against answers worked out by hand from the architecture."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import TINY
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alphatune import patch_
from alphatune.cli.main import main
from alphatune.models import cifar
from alphatune.models.paths import Paths, trace_paths
from alphatune.norms.survey import survey

CPU = torch.device("cpu")


def trace(model: nn.Module, size: int = 8) -> Paths:
    return trace_paths(model, (3, size, size), CPU)


def free(model: nn.Module, size: int = 8) -> set[str]:
    """The layers with a norm-free path; of the others it must be known that they have none."""
    paths = trace(model, size)
    assert paths.remark == ""
    assert paths.count(None) == 0
    assert set(paths.free) == {layer.name for layer in survey(model)}
    return {name for name, answer in paths.free.items() if answer}


class Net(nn.Module):
    """Three norms of one kind, two convolutions, a head; ``wire`` says how they are connected."""

    def __init__(self, wire: Callable[[Net, Tensor], object], norm: Callable[[], nn.Module] | None = None):
        super().__init__()
        norm = norm or (lambda: nn.BatchNorm2d(3))
        self.wire = wire
        self.a, self.b, self.c = norm(), norm(), norm()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))

    def forward(self, x: Tensor) -> object:
        return self.wire(self, x)


def chain(net: Net, x: Tensor) -> Tensor:
    return net.logits(net.c(net.conv2(net.b(net.conv1(net.a(x)).relu()).relu())).relu())


def pre_activation(net: Net, x: Tensor) -> Tensor:
    x = x + net.conv1(net.a(x).relu())
    x = x + net.conv2(net.b(x).relu())
    return net.logits(net.c(x).relu())


def post_activation(net: Net, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.logits((x + net.c(net.conv2(net.b(net.conv1(x)).relu()))).relu())


def projection(net: Net, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    return net.logits(net.b(net.conv1(x)) + net.c(net.conv2(x)))


def parallel(net: Net, x: Tensor) -> Tensor:
    return net.logits(net.a(x)) * net.logits(net.conv1(net.b(x))) + net.logits(net.conv2(net.c(x)).tanh())


def gate(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.logits(net.b(net.conv1(x)) * x.mean((2, 3), keepdim=True).sigmoid() + net.c(x))


WIRES = [
    (chain, {"c"}),
    (pre_activation, {"c"}),
    (post_activation, {"a", "c"}),
    (projection, {"b", "c"}),
    (parallel, {"a", "b", "c"}),
    (gate, {"a", "b", "c"}),
]


@pytest.mark.parametrize(("wire", "expected"), WIRES, ids=[w.__name__ for w, _ in WIRES])
@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(3),
        lambda: nn.GroupNorm(1, 3),
        lambda: nn.InstanceNorm2d(3),
        lambda: timm.layers.LayerNorm2d(3),  # its output is a view
        lambda: timm.layers.BatchNormAct2d(3),
        lambda: torchvision.ops.FrozenBatchNorm2d(3),
    ],
    ids=["batch", "group", "instance", "layer", "act", "frozen"],
)
def test_wirings_with_known_answers(
    wire: Callable[[Net, Tensor], Tensor], expected: set[str], norm: Callable[[], nn.Module]
) -> None:
    assert free(Net(wire, norm)) == expected


def test_a_norm_whose_output_only_a_linear_layer_sees() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)
    )
    assert free(model) == {"3"}
    assert free(model[:4]) == {"3"}  # the output itself is a norm's
    assert free(model[:3]) == {"1"}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), timm.layers.LayerNorm2d(3)], ids=["batch", "view"])
def test_an_activation_in_place_does_not_hide_the_norm(norm: nn.Module) -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1),
        norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(192, 5),
    )  # fmt: skip
    assert free(model) == {"3"}


def test_a_shared_norm_has_a_path_if_one_of_its_calls_has() -> None:
    def twice(net: Net, x: Tensor) -> Tensor:
        return net.logits(net.a(net.conv1(net.b(net.conv2(net.a(x))))) + 0 * net.c(x))

    assert free(Net(twice)) == {"a", "c"}

    def last_is_another(net: Net, x: Tensor) -> Tensor:
        return net.logits(net.c(net.conv1(net.b(net.a(net.conv2(net.a(x)))))))

    assert free(Net(last_is_another)) == {"c"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)),
        lambda x: F.group_norm(x, 3),
        F.instance_norm,
    ],
    ids=["layer", "batch", "group", "instance"],
)
def test_norm_functions_without_a_layer_count_too(function: Callable[[Tensor], Tensor]) -> None:
    def wire(net: Net, x: Tensor) -> Tensor:
        x = net.b(net.conv1(net.a(x)))
        return net.logits(function(x) + net.c(x))

    assert free(Net(wire)) == {"c"}


@pytest.mark.parametrize(
    "pack",
    [
        lambda logits, other: {"aux": other, "logits": logits},
        lambda logits, other: {"aux": other, "out": logits},
    ],
)
def test_the_path_is_to_the_logits_not_to_other_outputs(pack: Callable[[Tensor, Tensor], object]) -> None:
    def wire(net: Net, x: Tensor) -> object:
        x = net.a(x)
        return pack(net.logits(net.b(x)), net.logits(net.c(x)))

    # nothing leads from c to the logits: its decay may matter to the other output
    assert trace(Net(wire)).free == {"a": False, "b": True, "c": None}


def test_frozen_parameters_and_training_mode_make_no_difference() -> None:
    model = Net(post_activation).train().requires_grad_(False)
    model.b.eval()
    assert free(model) == {"a", "c"}
    assert model.training
    assert model.a.training
    assert not model.b.training


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Net(post_activation)
    assert free(model) == {"a", "c"}
    assert model.a.weight.is_inference()


def test_half_precision_and_a_model_that_changes_its_input_in_place() -> None:
    def wire(net: Net, x: Tensor) -> Tensor:
        return chain(net, x.sub_(0.5))

    assert free(Net(wire)) == {"c"}
    assert free(Net(wire).to(torch.bfloat16)) == {"c"}


# --- what cannot be known --------------------------------------------------------------------


def test_a_layer_that_does_not_run_is_unknown() -> None:
    paths = trace(Net(lambda net, x: net.logits(net.b(net.conv1(net.a(x))))))
    assert paths.free == {"a": False, "b": True, "c": None}
    assert [paths.count(answer) for answer in (True, False, None)] == [1, 1, 1]


def test_checkpointing_that_keeps_the_graph_changes_nothing() -> None:
    def wire(net: Net, x: Tensor) -> Tensor:
        x = checkpoint(lambda t: net.b(net.conv1(t)).relu(), net.a(x), use_reentrant=False)
        return net.logits(net.c(net.conv2(x)))

    assert free(Net(wire)) == {"c"}


def test_reentrant_checkpointing_hides_a_norm_and_what_lies_before_it() -> None:
    def block(net: Net, x: Tensor) -> Tensor:
        return checkpoint(lambda t: net.b(net.conv1(t)), x, use_reentrant=True)

    hidden_last = Net(lambda net, x: net.logits(net.c(x) + block(net, net.a(x))))
    assert trace(hidden_last).free == {"a": None, "b": None, "c": True}
    hidden_before_a_norm = Net(lambda net, x: net.logits(net.c(block(net, net.a(x)))))
    assert trace(hidden_before_a_norm).free == {"a": False, "b": None, "c": True}


def test_a_custom_function_without_norms_is_walked_through() -> None:
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * x.sigmoid()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            raise NotImplementedError

    model = Net(lambda net, x: net.logits(Swish.apply(post_activation_features(net, x))))
    assert free(model) == {"a", "c"}


def post_activation_features(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    return x + net.c(net.conv2(net.b(net.conv1(x))))


def test_a_cut_graph_is_unknown_not_no() -> None:
    cut = Net(lambda net, x: net.logits(net.c(net.b(net.a(x)).detach())))
    assert trace(cut).free == {"a": None, "b": None, "c": True}

    def backbone_without_gradients(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = net.b(net.a(x))
        return net.logits(net.c(x))

    assert trace(Net(backbone_without_gradients)).free == {"a": None, "b": None, "c": True}


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_model_that_forbids_gradients_is_unknown(
    guard: Callable[[], contextlib.AbstractContextManager],
) -> None:
    def wire(net: Net, x: Tensor) -> Tensor:
        with guard():
            return chain(net, x)

    paths = trace(Net(wire))
    assert paths.free == {"a": None, "b": None, "c": None}
    assert "no gradient" in paths.remark


def test_a_model_that_fails_with_gradients_only_is_unknown() -> None:
    def wire(net: Net, x: Tensor) -> Tensor:
        left, _right = net.a(x).split([1, 2], dim=1)
        left.relu_()  # a view of many: not allowed where gradients are recorded
        return net.logits(net.b(x))

    model = Net(wire)
    with torch.no_grad():
        model(torch.zeros(2, 3, 8, 8))
    paths = trace(model)
    assert paths.count(None) == 3
    assert "does not run with gradients" in paths.remark
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_with_moving_averages_of_its_own_is_no_layer() -> None:
    """A running_mean of the inputs makes the whole model a norm layer to the survey."""
    model = Net(post_activation)
    model.register_buffer("running_mean", torch.zeros(3))
    assert trace(model).free == {"": None, "a": True, "b": False, "c": True}


def test_no_trace_is_left() -> None:
    model = Net(post_activation)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert free(model) == {"a", "c"}
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(b.grad_fn is None and not b.requires_grad for b in model.buffers())


# --- architectures ---------------------------------------------------------------------------


def test_resnet50_the_branches_of_the_last_stage() -> None:
    """Identity shortcuts join the blocks of a stage; conv1 and norms lie between two stages."""
    model = torchvision.models.resnet50()
    assert free(model, 64) == {"layer4.0.bn3", "layer4.0.downsample.1", "layer4.1.bn3", "layer4.2.bn3"}
    assert len(survey(model)) == 53


def test_resnet56_the_stem_and_every_second_norm() -> None:
    """No shortcut holds a norm, so the stem's output and every block's branch reach the head."""
    expected = {"bn1"} | {f"layer{s}.{b}.bn2" for s in (1, 2, 3) for b in range(9)}
    assert free(cifar.resnet56(), 32) == expected
    assert len(expected) == 28
    assert len(survey(cifar.resnet56())) == 55


def test_cifar_resnet18_has_projections() -> None:
    assert free(cifar.resnet18(), 32) == {"layer4.0.bn2", "layer4.0.shortcut.1", "layer4.1.bn2"}


def test_inception_v3_the_branches_of_the_last_block() -> None:
    model = torchvision.models.inception_v3(init_weights=False)
    paths = trace(model, 299)
    branches = (
        "branch1x1",
        "branch3x3_2a",
        "branch3x3_2b",
        "branch3x3dbl_3a",
        "branch3x3dbl_3b",
        "branch_pool",
    )
    assert {n for n, answer in paths.free.items() if answer} == {f"Mixed_7c.{b}.bn" for b in branches}
    # the auxiliary head runs in training only
    assert {n for n, answer in paths.free.items() if answer is None} == {
        "AuxLogits.conv0.bn", "AuxLogits.conv1.bn",
    }  # fmt: skip
    assert len(paths.free) == 96


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("efficientnet_b0", 64, {"bn2"}),
        ("mobilenetv2_050", 64, {"bn2"}),
        ("mobilenetv3_small_050", 64, {"blocks.5.0.bn1"}),  # no norm in its head
        ("densenet121", 64, {"features.norm5"}),
        ("vit_tiny_patch16_224", 224, {"norm"}),
        ("resnetv2_50", 64, {"norm"}),  # pre-activation
        ("vgg11_bn", 64, {"features.26"}),
        ("levit_128s", 224, {"head.bn", "head_dist.bn"}),  # the mean of two heads
    ],
)
def test_timm_architectures(name: str, size: int, expected: set[str]) -> None:
    model = timm.create_model(name)
    assert free(model, size) == expected
    if name.startswith("vit"):
        model.set_grad_checkpointing(True)
        assert free(model, size) == expected


def test_a_patched_model_has_the_same_paths() -> None:
    model = cifar.resnet20()
    before = free(model, 32)
    patch_(model, 0.1)
    assert free(model, 32) == before


# --- the meaning -----------------------------------------------------------------------------


def test_scaling_acts_on_the_function_exactly_where_a_path_is_free() -> None:
    """Batch statistics undo a scale of γ and β before another norm, and only there."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, eps=1e-12), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
    ).double()  # fmt: skip
    paths = trace_paths(model, (3, 8, 8), CPU)
    assert set(paths.free.values()) == {True, False}
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    for name, answer in paths.free.items():
        layer = model.get_submodule(name)
        with torch.no_grad():
            nn.init.normal_(layer.bias)
            before = model(x)
            layer.weight *= 0.5
            layer.bias *= 0.5
            assert torch.allclose(model(x), before) is not answer


# --- the command -----------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return int(stop.value.code or 0), *capsys.readouterr()


def test_inspect_paths(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> None:
    args = ("inspect", TINY, "--checkpoint", tiny_checkpoint, "--input-size", 12)
    code, stdout, _ = command(capsys, *args, "--paths", "--format", "json")
    assert code == 0
    document = json.loads(stdout)
    assert document["paths"] == {"with": 1, "of": 2, "unknown": 0}
    assert {row["name"]: row["free_path"] for row in document["layers"]} == {"bn1": False, "bn2": True}

    without = json.loads(command(capsys, *args, "--format", "json")[1])
    for row in document["layers"]:
        del row["free_path"]
    del document["paths"]
    assert document == without

    _, stdout, _ = command(capsys, *args, "--paths", "--all")
    assert "1 of 2 norm layers have a norm-free path to the output" in stdout
    rows = [line.split() for line in stdout.splitlines() if line.startswith("bn")]
    assert [("yes" in row, "no" in row) for row in rows] == [(False, True), (True, False)]
    _, plain, _ = command(capsys, *args)
    assert "path" not in plain
    assert command(capsys, *args, "--paths", "--format", "quiet")[1] == "patchable=2 paths=1/2\n"


def test_inspect_paths_of_a_model_that_cannot_be_traced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "closed.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Closed(nn.Sequential):\n"
        "    @torch.no_grad()\n"
        "    def forward(self, x):\n"
        "        return super().forward(x)\n"
        "def build():\n"
        "    return Closed(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4))\n"
    )
    args = ("inspect", f"{tmp_path / 'closed.py'}:build", "--input-size", 6, "--paths")
    code, stdout, stderr = command(capsys, *args, "--format", "json")
    assert code == 0
    document = json.loads(stdout)
    assert document["paths"] == {"with": 0, "of": 1, "unknown": 1}
    assert document["layers"][0]["free_path"] is None
    assert "no gradient" in stderr
    assert "(1 unknown)" in command(capsys, *args)[1]
