"""A survey of torchvision's and timm's networks: which can be cut, trained for a step and exported, with equal output.

Every network, with random weights, is cut in 2 and in 4. Its composed groups must equal the uncut network to the bit,
with the same names of weights; one step of local critic training must change every group and critic; and, for those in
EXPORTED, onnxruntime must agree with torch at every exit. A failure is recorded with its message. Results are written
after each network, so the survey can be interrupted and continued:

    python benchmarks/networks.py
    python benchmarks/networks.py --only torchvision:resnet18 timm:vit_tiny_patch16_224
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, write
from torch import Tensor, nn

from anytime_lct.counting import component_costs
from anytime_lct.critics import kinds
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import LCTError
from anytime_lct.exits.profile import Exit, Profile, Quality
from anytime_lct.export.write import Trained, write_bundle
from anytime_lct.lct import Rule, descend
from anytime_lct.models import networks as models
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import CutRecipe
from anytime_lct.task import Facts, losses

SIDES = {
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "timm:efficientformer_l1": 224,
    "timm:levit_128s": 224,
    "timm:swin_tiny_patch4_window7_224": 224,
}
SIDE, CLASSES, SIZES = 64, 10, (2, 4)
TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 "
    "resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11_bn vit_b_16 wide_resnet50_2"
)
TIMM = (
    "cait_xxs24_224 coatnet_pico_rw_224 convnextv2_atto deit_tiny_patch16_224 densenet121 edgenext_xx_small "
    "efficientformer_l1 efficientnet_lite0 eva02_tiny_patch14_224 fastvit_t8 ghostnet_050 levit_128s mixer_s32_224 "
    "mobilenetv3_small_050 mobilenetv4_conv_small mobilevit_xxs nfnet_l0 pit_ti_224 poolformer_s12 regnety_002 "
    "repvgg_a0 res2net50_14w_8s resnet26t resnetv2_50 starnet_s1 swin_tiny_patch4_window7_224 tf_efficientnetv2_b0 "
    "tiny_vit_5m_224 vgg11 vit_tiny_patch16_224"
)
NAMES = [f"torchvision:{n}" for n in TORCHVISION.split()] + [f"timm:{n}" for n in TIMM.split()]
EXPORTED = {  # one network of each kind
    "torchvision:densenet121", "torchvision:efficientnet_b0", "torchvision:googlenet", "torchvision:mobilenet_v3_small",
    "torchvision:regnet_y_400mf", "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
    "torchvision:mnasnet0_5", "torchvision:swin_t", "timm:convnextv2_atto", "timm:efficientnet_lite0",
    "timm:levit_128s", "timm:mixer_s32_224", "timm:resnet26t", "timm:tf_efficientnetv2_b0", "timm:vit_tiny_patch16_224",
}  # fmt: skip


def compose(groups: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Run groups one after another."""
    for group in groups:
        x = group(x)
    return x


def cut(name: str, side: int, num_groups: int) -> tuple[nn.Module, LCTNetwork]:
    """Build a network with random weights and cut it by layers, with slim critics; return both."""
    torch.manual_seed(0)
    model = models.build(name, (3, side, side), CLASSES)
    return model, LCTNetwork.cut(model, torch.zeros(2, 3, side, side), CutRecipe(groups=num_groups, by="layers"))


def equal(model: nn.Module, network: LCTNetwork, side: int) -> bool:
    """Whether the composed groups equal the uncut network to the bit, in evaluation."""
    x = torch.randn(2, 3, side, side)
    with probing(model), probing(network):
        return torch.equal(model(x), compose(network.groups, x))


def same_names(model: nn.Module, network: LCTNetwork) -> bool:
    """Whether the groups have all weights of the network, as the same tensors and under the same names."""
    state, parameters = network.main_state(), dict(model.named_parameters(remove_duplicate=False))
    of_groups = {name: p for group in network.groups for name, p in group.named_parameters(remove_duplicate=False)}
    return state.keys() == model.state_dict().keys() and all(parameters[name] is p for name, p in of_groups.items())


def trains(network: LCTNetwork, side: int) -> bool:
    """Whether one step of local critic training has finite losses and changes every group and critic."""
    network.train()
    before = [[p.detach().clone() for p in part.parameters()] for part in (*network.groups, *network.critics)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    h, y, previous, finite = torch.randn(4, 3, side, side), torch.arange(4), None, True
    for f, c in zip(network.groups, [*network.critics, None], strict=True):
        result = descend(f, c, h, y, partial(losses, "classification"), Rule(critic_loss="cross-entropy"))
        if previous is not None:
            previous.learn(result.L)
        h, previous, finite = result.h, result, finite and bool(result.L.isfinite().all())
    optimizer.step()
    after = [list(part.parameters()) for part in (*network.groups, *network.critics)]
    changed = [
        any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)
    ]
    return finite and all(changed)


def export_difference(name: str, network: LCTNetwork, side: int) -> float:
    """Export all exits and compare both kinds of graphs with torch; return the largest difference of a logit."""
    facts = Facts("random", "classification", (3, side, side), CLASSES, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    network.eval()
    group_costs, critic_costs = component_costs(network.groups, network.critics, torch.zeros(1, 3, side, side))  # type: ignore[arg-type]
    quality = Quality(value=0.5, low=0.4, high=0.6, loss=1.0, samples=100)
    count = network.num_groups
    profile = Profile(
        model=name,
        data="random",
        metric="accuracy",
        groups=group_costs,
        critics=critic_costs,
        exits=tuple(Exit(index=i + 1, validation=quality, test=quality, latency=None) for i in range(count)),
        p_worse=((1.0,) * count,) * count,
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Trained(network, facts, profile, name), Path(folder) / "bundle")
        return bundle.manifest.largest_difference


def survey(name: str) -> dict[str, Any]:
    """Run all checks on one network; return a row, with the error's message if one fails."""
    side, start = SIDES.get(name, SIDE), time.monotonic()
    row: dict[str, Any] = {"network": name, "side": side}
    try:
        for num_groups in SIZES:
            model, network = cut(name, side, num_groups)
            trace = Trace.of(model)
            row |= {
                "params": sum(p.numel() for p in model.parameters()),
                "places": len(trace.candidates),
                "whole": sorted({type(model.get_submodule(path)).__name__ for path in trace.recording.whole}),
            }
            crosses = {
                kinds.layout(torch.empty(2, *shape), **trace.hints(place))
                for place, shape in zip(network.places, network.shapes, strict=True)
            }
            row[f"cut_in_{num_groups}"] = {
                "after": network.places,
                "crosses": sorted(crosses),
                "equal_to_the_bit": equal(model, network, side),
                "same_names": same_names(model, network),
                "trains": trains(network, side),
            }
            if num_groups == SIZES[0] and name in EXPORTED:
                row["export_difference"] = export_difference(name, network, side)
    except LCTError as error:
        row["failed"] = str(error)
    row["seconds"] = round(time.monotonic() - start, 1)
    return row


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Write the survey as Markdown, a line per network."""
    lines = [
        "# Networks of torchvision and timm",
        "",
        "By `python benchmarks/networks.py`: random weights, cut by layers, slim critics. *Equal*: composed groups",
        "compute what the uncut network does, to the bit, in evaluation; *names*: they hold its weights under their",
        "own names; *trains*: one step of local critic training moves every group and critic; *export*: largest",
        "difference of a logit between onnxruntime and torch over all exits, cut in 2. *As one step*: modules that",
        "torch.fx cannot follow, which run as they are.",
        "",
        "| network | input | parameters | places | what crosses | cut in 2: equal, names, trains | cut in 4 | export "
        "| as one step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["network"], f"3x{row['side']}x{row['side']}", f"{row.get('params', 0) / 1e6:.1f}M"]
        cells += [str(row.get("places", "")), ", ".join(_crossing(row))]
        for num_groups in SIZES:
            cut_row = row.get(f"cut_in_{num_groups}")
            checks = [cut_row[key] for key in ("equal_to_the_bit", "same_names", "trains")] if cut_row else []
            cells.append(", ".join("yes" if passes else "**no**" for passes in checks) or "no")
        cells.append(f"{row['export_difference']:.0e}" if "export_difference" in row else "")
        cells.append(", ".join(row.get("whole", ())))
        lines.append(f"| {' | '.join(cells)} |")
    passing = [row for row in rows if "failed" not in row]
    lines += ["", f"{len(passing)} of {len(rows)} networks pass all that was tried."]
    lines += [f"- {row['network']}: {row['failed']}" for row in rows if "failed" in row]
    return "\n".join(lines) + "\n"


def _crossing(row: dict[str, Any]) -> list[str]:
    return sorted({kind for N in SIZES for kind in row.get(f"cut_in_{N}", {}).get("crosses", ())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NAMES, help="survey these networks again")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no other network after this time")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path, start = RESULTS / "networks.json", time.monotonic()
    rows = {row["network"]: row for row in json.loads(path.read_text())["networks"]} if path.exists() else {}
    for name in arguments.only:
        if (name in rows and arguments.only is NAMES) or time.monotonic() - start > arguments.seconds:
            continue
        rows[name] = survey(name)
        print(f"{name}: {rows[name].get('failed', 'done')} ({rows[name]['seconds']} s)", flush=True)
        ordered = [rows[known] for known in NAMES if known in rows]
        write("networks", {"networks": ordered})
        (RESULTS / "networks.md").write_text(as_markdown(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
