"""What a node does for a run, as somebody sees it who watches."""

from io import StringIO

from rich.console import Console

from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli.live import follow
from tunesmith.cli.run_page import show_run


def test_a_watched_run_tells_what_its_node_does_until_the_next_stage() -> None:
    activity = run_pb2.Activity(text="downloading the base model", percent=40)
    waiting, download = run_pb2.RUN_STATE_WAITING_FOR_GPU, fault_pb2.STAGE_DATA_DOWNLOAD
    moved = event_pb2.RunStateChanged()
    doing = event_pb2.ActivityChanged(activity=activity)
    events = [
        event_pb2.Event(state_changed=moved, state=waiting, stage=download),
        event_pb2.Event(activity_changed=doing, state=waiting, stage=download),
        event_pb2.Event(state_changed=moved, state=waiting),
    ]
    for is_terminal in (False, True):
        screen = Console(file=StringIO(), width=120, force_terminal=is_terminal)
        seen = [
            view.activity is not None
            for view in follow(events, name="projects/p/runs/r1", screen=screen)
        ]
        assert seen == [False, True, False]
        if not is_terminal:
            said = screen.file.getvalue()  # type: ignore[attr-defined]
            assert "data download · downloading the base model · 40 %" in said
    run = run_pb2.Run(name="projects/p/runs/r1", activity=activity)
    screen = Console(file=StringIO(), width=120)
    show_run(run, screen)
    assert "downloading the base model · 40 %" in screen.file.getvalue()  # type: ignore[attr-defined]
