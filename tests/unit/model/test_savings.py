"""Every saving of memory gives the outputs and gradients of the model that saves nothing."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from msdv.config import Arch, GroupNormMode
from msdv.model.inflate import VideoUNet, inflate
from msdv.model.savings import Savings, cheapest_first, unit_costs
from tests.tiny import tiny_unet

FRAMES = 5


def trained_model(
    mode: GroupNormMode = "frame", channels_last: bool = False, arch: Arch = "pseudo3d", **shape: object
) -> VideoUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = tiny_unet(**shape)  # type: ignore[arg-type]
        model = inflate(unet, mode, arch=arch, mid_block=True, channels_last=channels_last)
        with torch.no_grad():
            for parameter in model.temporal_parameters().values():
                parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def inputs(model: VideoUNet, text_of_frames: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    sample = torch.randn(2, model.config.in_channels, FRAMES, 8, 8, generator=generator)
    text = (
        torch.randn(2, FRAMES, 7, 32, generator=generator)
        if text_of_frames
        else torch.randn(2, 7, 32, generator=generator)
    )
    return sample.to(dtype), torch.tensor([10, 900]), text.to(dtype)


def step(model: VideoUNet, *arguments: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of all temporal parameters."""
    parameters = model.temporal_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    out = model(*arguments)
    out.float().square().mean().backward()
    results = {"output": out.detach()}
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        results[key] = parameter.grad
    return results


def check(got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """All within rtol of the largest of each."""
    for key, value in expected.items():
        error = (got[key] - value).abs().max().item()
        assert error <= rtol * value.abs().max().item(), key


SHAPES = [
    pytest.param({}, "frame", False, id="sd1"),
    pytest.param({"sd2": True, "in_channels": 9}, "joint", False, id="sd2 inpainting"),
    pytest.param({"blocks": 4}, "joint", True, id="four blocks"),
    pytest.param({"arch": "motion-module"}, "joint", False, id="motion modules"),
    pytest.param({"arch": "motion-module"}, "joint", True, id="motion modules channels last"),
    pytest.param({"arch": "motion-module"}, "frame", True, id="motion modules by frame"),
]
# Where a tensor is used thrice, units add up its gradients in another order.
EXACT = 1e-5


@pytest.mark.parametrize(("shape", "mode", "channels_last"), SHAPES)
def test_checkpoints_give_the_same(shape: dict, mode: GroupNormMode, channels_last: bool) -> None:
    model = trained_model(mode, channels_last, **shape)
    arguments = inputs(model)
    expected = step(model, *arguments)
    names = list(model.units())
    for checkpoint, on_host in product(("full", tuple(names[::2])), (False, True)):
        model.save_memory(Savings(checkpoint, host_checkpoints=on_host))
        for _ in range(1 + on_host):  # the second time in the same host memory
            check(step(model, *arguments), expected, EXACT)


@pytest.mark.parametrize(("shape", "mode", "channels_last"), SHAPES)
@pytest.mark.parametrize("checkpoint", ["none", "full"])
def test_frames_in_parts_give_the_same(shape: dict, mode: GroupNormMode, channels_last: bool, checkpoint: str) -> None:
    model = trained_model(mode, channels_last, **shape)
    arguments = inputs(model, text_of_frames=checkpoint == "none")
    expected = step(model, *arguments)
    with torch.no_grad():
        quiet = model(*arguments)
    for chunk in (2, FRAMES, 100):
        for on_host in (False, True):
            model.save_memory(Savings(checkpoint, on_host, chunk))  # type: ignore[arg-type]
            check(step(model, *arguments), expected, 10 * EXACT)
        with torch.no_grad():
            torch.testing.assert_close(model(*arguments), quiet, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shape", "mode", "channels_last"), SHAPES)
def test_streamed_weights_give_the_same(shape: dict, mode: GroupNormMode, channels_last: bool) -> None:
    model = trained_model(mode, channels_last, **shape)
    arguments = inputs(model)
    expected = step(model, *arguments)
    with torch.no_grad():
        quiet = model(*arguments)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_memory(Savings("full"))
    checkpointed = step(model, *arguments)
    check(checkpointed, expected, EXACT)
    model.save_memory(Savings(stream_weights=True))
    for _ in range(2):
        got = step(model, *arguments)
        assert all(torch.equal(got[key], value) for key, value in checkpointed.items())
    with torch.no_grad():
        assert torch.equal(model(*arguments), quiet)
    model.save_memory(Savings("full", True, 2, stream_weights=True))
    check(step(model, *arguments), expected, 10 * EXACT)
    for _ in ("streamed", "not any more"):
        now = model.state_dict()
        assert list(now) == list(state)
        for key, value in state.items():
            assert torch.equal(now[key], value)
            assert now[key].stride() == value.stride()
        model.save_memory(Savings())
    assert not any(p.requires_grad for k, p in model.named_parameters() if k.removeprefix("unet.") not in expected)
    check(step(model, *arguments), expected, 0)


def test_streamed_weights_are_on_the_device_one_unit_at_a_time() -> None:
    with FakeTensorMode():
        model = trained_model(blocks=4)
        units = dict(list(model.units().items())[1:])
        sizes = [sum(p.nbytes for p in unit.parameters() if not p.requires_grad) for unit in units.values()]
        materialize = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
        }
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, materialize[id(parameter)])
        model.save_memory(Savings(stream_weights=True))
        assert {p.device.type for unit in units.values() for p in unit.parameters() if not p.requires_grad} == {"cpu"}
        frozen = [p for p in model.parameters() if not p.requires_grad]
        outside = sum(p.nbytes for p in frozen if p.device.type == "meta")
        seen: list[int] = []

        def look(*_: object) -> None:
            storages = {p.untyped_storage()._cdata: p for p in model.parameters() if not p.requires_grad}
            seen.append(sum(p.untyped_storage().nbytes() for p in storages.values() if p.device.type == "meta"))

        for name, module in model.named_modules():
            if name.endswith(("time_emb_proj", "proj_in")):
                module.register_forward_hook(look)
        model(*(t.to("meta") for t in inputs(model))).sum().backward()
        assert len(seen) == 2 * (len(units) - 3)  # all but the upsamplers, in both passes
        assert max(seen) - outside < 2 * max(sizes)  # with gaps between them
        assert max(seen) - outside >= max(sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_all_of_it_is_as_near(dtype: torch.dtype) -> None:
    model = trained_model().to(dtype)
    arguments = inputs(model)
    exact = step(copy.deepcopy(model).float(), *(t.float() if t.is_floating_point() else t for t in arguments))
    plain = step(model, *arguments)
    for savings in (Savings("full", host_checkpoints=True), Savings("full", True, 2, True)):
        model.save_memory(savings)
        got = step(model, *arguments)
        errors = [sum((r[key] - value).norm() / value.norm() for key, value in exact.items()) for r in (got, plain)]
        assert errors[0] < 1.1 * errors[1]


def test_several_backward_passes_add_up_and_a_failed_one_leaves_no_trace() -> None:
    model = trained_model()
    arguments = inputs(model)
    expected = step(model, *arguments)
    model.save_memory(Savings("full", host_checkpoints=True))
    model(*arguments)  # never gone through backward
    out = model(*arguments)
    with torch.no_grad():
        model(arguments[0][:, :, :2], *arguments[1:])  # of other frames, in between
    for parameter in model.temporal_parameters().values():
        parameter.grad = None
    out.float().square().mean().backward()
    for key, parameter in model.temporal_parameters().items():
        torch.testing.assert_close(parameter.grad, expected[key], atol=1e-7, rtol=1e-4)
    model(*arguments).float().square().mean().backward()
    for key, parameter in model.temporal_parameters().items():
        torch.testing.assert_close(parameter.grad, 2 * expected[key], atol=1e-7, rtol=1e-4)
    out = model(*arguments).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gone through backward before"):
        out.backward()


def held_bytes(model: VideoUNet, *arguments: Tensor) -> int:
    """Bytes of the tensors that a forward pass leaves behind for the backward pass, weights left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    held: dict[int, Tensor] = {}

    def hold(t: Tensor) -> Tensor:
        held[t.untyped_storage()._cdata] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        model(*arguments)
    return sum(t.untyped_storage().nbytes() for key, t in held.items() if key not in own)


def test_costs_say_what_checkpoints_save() -> None:
    model = trained_model(blocks=4)
    arguments = inputs(model)
    before = model.savings
    costs = unit_costs(model, *arguments)
    assert model.savings == before
    assert sorted(cost.name for cost in costs) == sorted(model.units())
    assert [cost.name for cost in costs][:2] == ["conv_in", "down_blocks.0.resnets.0"]
    everything = held_bytes(model, *arguments)
    order = cheapest_first(costs)
    by_name = {cost.name: cost for cost in costs}
    prices = [by_name[name].flops / by_name[name].saved_bytes for name in order]
    assert prices == sorted(prices)
    saved = 0
    for count in (1, len(order) // 2, len(order)):
        model.save_memory(Savings(tuple(order[:count])))
        least = saved
        saved = everything - held_bytes(model, *arguments)  # checkpoints are not held by the graph, but by their store
        assert saved > least
        assert saved >= sum(by_name[name].saved_bytes for name in order[:count])
    with FakeTensorMode():
        model = trained_model(blocks=4)
        assert unit_costs(model, *inputs(model)) == costs


def test_a_name_that_is_no_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="not units of this model: nonsense"):
        trained_model().save_memory(Savings(("conv_in", "nonsense")))


def test_a_copy_of_a_saving_model_works() -> None:
    model = trained_model()
    model.save_memory(Savings("full", host_checkpoints=True, chunk_frames=2))
    arguments = inputs(model)
    expected = step(model, *arguments)
    got = step(copy.deepcopy(model), *arguments)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
