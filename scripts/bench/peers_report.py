"""The figures of the runs as a table, with what is to be reached beside them."""

MET, MISSED = "met", "MISSED"
MEMORY = 256 << 20
# What rounds to 1.00.
ONE = 1.005


def targets(figures, segment):
    """(what, bound, figure, whether it is met) of a run with peers. `segment`: bytes in flight that a fault may cost."""
    name = figures["scenario"]
    extra = segment / figures["bytes"] if name in ("killed", "frozen") else 0.0
    yield "origin", 1.0 + extra, figures["origin"], figures["origin"] <= ONE + extra
    yield "resolve", 1, figures["resolves"], figures["resolves"] <= 1
    yield "put", 1.0 + extra, figures["put"], figures["put"] <= ONE + extra
    if figures["seconds"] is None:
        return
    if name in ("at once", "at once, mapped") and figures.get("alone"):
        ratio = figures["seconds"] / figures["alone"]
        yield "÷ alone", 1.2, ratio, ratio <= 1.2
    if figures.get("fill"):
        ratio = figures["seconds"] / figures["fill"]
        yield "hit ÷ fill", 0.3, ratio, ratio <= 0.3
    yield "first byte p99", figures["first_bound"], figures["first_p99"], figures["first_p99"] <= figures["first_bound"]
    yield "memory", MEMORY >> 20, figures["memory"] >> 20, figures["memory"] <= MEMORY


def reached(figures, segment):
    """`all met`, or what is not, with the bounds."""
    if figures["errors"] or figures["wrong"]:
        return "**FAILED**: " + "; ".join(
            figures["errors"] + [f"wrong bytes at {place}" for place in figures["wrong"][:3]]
        )
    if not figures["peers"] or figures["nodes"] == 1:
        return ""
    missed = [f"{what} ≤ {bound:.3g}" for what, bound, _, met in targets(figures, segment) if not met]
    return f"{MISSED}: {', '.join(missed)}" if missed else f"all {MET}"


def cells(figures, segment):
    def number(value, form):
        return "" if value is None else form.format(value)

    seconds, alone = figures["seconds"], figures.get("alone")
    over_alone = seconds / alone if seconds and alone else None
    worst = seconds / figures["fastest"] if seconds else None
    note = reached(figures, segment)
    if figures.get("fill") and seconds:
        note += f"; {seconds / figures['fill']:.2f} × the fill of {figures['fill']:.1f} s (to reach: 0.3)"
    if figures.get("late"):
        note += f"; the frozen node's own reader took {figures['late']:.1f} s"
    return [
        figures["scenario"],
        str(figures["nodes"]),
        "yes" if figures["peers"] else "no",
        number(figures["origin"], "{:.3f}"),
        number(figures["resolves"], "{:.3g}"),
        number(seconds, "{:.1f}"),
        number(over_alone, "{:.2f}"),
        number(worst, "{:.2f}"),
        number(figures["first_p50"], "{:.2f}") + " / " + number(figures["first_p99"], "{:.2f}"),
        number(figures["processor"], "{:.2f}"),
        number(figures["memory"] / (1 << 20), "{:.0f}"),
        number(figures["put"], "{:.3f}"),
        number(figures["got"], "{:.3f}"),
        note.lstrip("; "),
    ]


HEADS = [
    "scenario", "nodes", "peers", "origin ÷ model", "/resolve a blob", "seconds", "÷ one alone", "worst ÷ best",
    "first byte p50 / p99, s", "CPU s a GB", "peak RSS, MiB", "bucket PUT ÷ model", "bucket GET ÷ model", "to reach",
]  # fmt: skip


def table(head, rows, segment):
    lines = [head, "", "| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row, segment)) + " |" for row in rows]
    return "\n".join(lines)
