"""The child's end of the pipe to the agent."""

import os
import socket
import threading
from typing import Any

import msgspec

from trainer.pipe import LINE_BYTES_MAX, Finish, Pause, Resume, Train, decode_to_child, encode


class Channel:
    """Sends messages at once; a thread of its own receives, so that a step never waits for it.

    When the agent is gone the process ends: nobody would collect the work, and the device must be
    free for the agent's successor.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._plans: list[Train] = []
        self._plan_came = threading.Condition()
        self.finish = threading.Event()
        self.running = threading.Event()
        self.running.set()
        threading.Thread(target=self._receive, name="agent-channel", daemon=True).start()

    def send(self, message: msgspec.Struct) -> None:
        """Send one message to the agent."""
        with self._sending:
            self._connection.sendall(encode(message))

    def next_plan(self) -> Train:
        """The next plan, waited for; `finish` and pauses of the run before it are forgotten."""
        with self._plan_came:
            while not self._plans:
                self._plan_came.wait()
            return self._plans.pop(0)

    def _receive(self) -> None:
        lines = self._connection.makefile("rb")
        while line := lines.readline(LINE_BYTES_MAX):
            self._obey(decode_to_child(line))
        os._exit(0)

    def _obey(self, message: Any) -> None:
        match message:
            case Train():
                self.finish.clear()
                self.running.set()
                with self._plan_came:
                    self._plans.append(message)
                    self._plan_came.notify()
            case Finish():
                self.finish.set()
                self.running.set()
            case Pause():
                self.running.clear()
            case Resume():
                self.running.set()
