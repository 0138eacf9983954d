"""The child's end of the channel to the agent: plans, and what is wished of the run under way."""

import threading
from queue import SimpleQueue

from chassis.child import channel
from trainer.pipe import Finish, Pause, Resume, ToChild, Train, to_child


class RunChannel:
    """Sends messages at once; wishes come while a plan is trained."""

    def __init__(self, descriptors: str) -> None:
        self._plans: SimpleQueue[Train] = SimpleQueue()
        self.finish = threading.Event()
        self.running = threading.Event()
        self.running.set()
        self._channel = channel.Channel(descriptors, to_child, self._obey)
        self.send = self._channel.send
        self.keep_pulse = self._channel.keep_pulse

    def next_plan(self) -> Train:
        """The next plan, waited for; `finish` and pauses of the run before it are forgotten."""
        return self._plans.get()

    def _obey(self, message: ToChild) -> None:
        match message:
            case Train():
                self.finish.clear()
                self.running.set()
                self._plans.put(message)
            case Finish():
                self.finish.set()
                self.running.set()
            case Pause():
                self.running.clear()
            case Resume():
                self.running.set()
