"""Commands in the guest, against a stand-in for QEMU's guest agent on a UNIX socket."""

import base64
import contextlib
import json
import socket
import threading

import pytest

from sim.guest import agent as agent_module
from sim.guest.agent import Agent, GuestError


class FakeAgent:
    """Answers by `replies`: command -> what to answer, a list of it, or a function of the arguments."""

    stale = ""
    """Lines before the first answer."""

    def __init__(self, path, replies, deaf=0):
        self.replies, self.asked, self.deaf = replies, [], deaf
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        link, _ = self._listener.accept()
        self._listener.close()
        with contextlib.suppress(OSError), link, link.makefile("rw") as file:
            for line in file:
                request = json.loads(line)
                name, arguments = request["execute"], request.get("arguments", {})
                self.asked.append((name, arguments))
                if name == "guest-sync":
                    if self.deaf:
                        self.deaf -= 1
                        continue
                    file.write(self.stale)
                    answer = {"return": arguments["id"]}
                else:
                    answer = self.replies[name]
                    if callable(answer):
                        answer = answer(arguments)
                    if isinstance(answer, list):
                        answer = answer.pop(0)
                    if answer is None:
                        return
                file.write((answer if isinstance(answer, str) else json.dumps(answer)) + "\n")
                file.flush()


@pytest.fixture
def fake(tmp_path):
    made = []

    def start(deaf=0, **replies):
        path = tmp_path / f"agent{len(made)}.sock"
        server = FakeAgent(path, {name.replace("_", "-"): reply for name, reply in replies.items()}, deaf)
        link = Agent(path, 5.0)
        made.append(link)
        return server, link

    yield start
    for link in made:
        link.close()


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def exited(code=0, out="", err="", **more):
    return {"return": {"exited": True, "exitcode": code, "out-data": encoded(out), "err-data": encoded(err), **more}}


RUNNING = {"return": {"exited": False}}


def test_a_command(fake):
    server, link = fake(guest_exec={"return": {"pid": 7}}, guest_exec_status=[RUNNING, exited(3, "läuft\n", "no\n")])
    done = link.run("ls", "-l", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "läuft\n", "no\n")
    assert server.asked[1:] == [
        ("guest-exec", {"path": "ls", "arg": ["-l"], "capture-output": True}), *[("guest-exec-status", {"pid": 7})] * 2
    ]  # fmt: skip


def test_a_command_that_fails_or_is_killed(fake):
    _, link = fake(
        guest_exec={"return": {"pid": 7}},
        guest_exec_status=[exited(1, "out", "why\n"), {"return": {"exited": True, "signal": 9}}],
    )
    with pytest.raises(GuestError, match="in the guest, 'ls' ended with status 1: why"):
        link.run("ls")
    assert link.run("ls", check=False).returncode == -9


def test_a_command_that_does_not_end(fake):
    _, link = fake(guest_exec={"return": {"pid": 7}}, guest_exec_status=RUNNING)
    with pytest.raises(GuestError, match=r"'sleep 9' has not ended within 0\.2 s"):
        link.run("sleep", "9", timeout=0.2)


def test_refused(fake):
    _, link = fake(guest_exec={"error": {"class": "GenericError", "desc": "no such program"}})
    with pytest.raises(GuestError, match="the guest's agent refused guest-exec: no such program"):
        link.run("nonsense")


def test_a_guest_that_is_gone(fake):
    _, link = fake(guest_exec=None)
    with pytest.raises(GuestError, match="the guest is gone"):
        link.run("ls")
    with pytest.raises(GuestError, match="the guest is gone"):
        link.run("ls")


def test_silence(fake, monkeypatch):
    monkeypatch.setattr(agent_module, "_REPLY_S", 0.2)
    _, link = fake(guest_exec=lambda _: threading.Event().wait(1.0) and None)
    with pytest.raises(GuestError, match=r"has not answered guest-exec within 0\.2 s"):
        link.run("ls")


def test_an_agent_that_starts_late(fake):
    """What was asked before anybody listened may be answered later: the last question counts."""
    server, link = fake(deaf=1, guest_exec={"return": {"pid": 1}}, guest_exec_status=exited())
    assert [name for name, _ in server.asked] == ["guest-sync", "guest-sync"]
    assert link.run("true").returncode == 0


def test_a_machine_that_ends_at_its_boot(tmp_path):
    with pytest.raises(GuestError, match="the guest's agent cannot be reached"):
        Agent(tmp_path / "none.sock", 30.0, lambda: False)
    with socket.socket(socket.AF_UNIX) as nobody_reads:
        nobody_reads.bind(str(tmp_path / "silent.sock"))
        nobody_reads.listen()
        with pytest.raises(GuestError, match=r"the guest has not come up within 0\.3 s"):
            Agent(tmp_path / "silent.sock", 0.3)


def test_answers_to_somebody_else(fake, monkeypatch):
    """Of whoever was there before; the first may be but the rest of one."""
    monkeypatch.setattr(FakeAgent, "stale", 'turn": 5}\n[]\n{"error": {"desc": "no"}}\n{"return": 5}\n')
    server, link = fake(guest_exec={"return": {"pid": 1}}, guest_exec_status=exited())
    assert link.run("true").returncode == 0
    assert [name for name, _ in server.asked].count("guest-sync") == 1


@pytest.mark.parametrize("answer", ["no JSON", "5"])
def test_what_is_no_answer(fake, answer):
    _, link = fake(guest_exec=answer)
    with pytest.raises(GuestError, match=f"has answered what is no answer: b'{answer}'"):
        link.run("true")


def test_output_that_was_cut_short(fake):
    """The agent keeps 16 MiB; half an output is none."""
    _, link = fake(guest_exec={"return": {"pid": 7}}, guest_exec_status=exited(0, "half", **{"out-truncated": True}))
    with pytest.raises(GuestError, match="'cat all' printed more than its agent keeps"):
        link.run("cat", "all")


def test_nobody_reads(fake, monkeypatch):
    """What the socket has no room for is not waited for without end."""
    monkeypatch.setattr(agent_module, "_REPLY_S", 0.2)
    _, link = fake(guest_exec=lambda _: threading.Event().wait(1.0) and None)
    with pytest.raises(GuestError, match="has not answered guest-exec"):
        link.run("true")
    with pytest.raises(GuestError, match=r"has not taken guest-exec within 0\.2 s"):
        link.run("true", "x" * (8 << 20))


def test_it_ends_before_it_is_up(tmp_path):
    with socket.socket(socket.AF_UNIX) as nobody_reads:
        nobody_reads.bind(str(tmp_path / "silent.sock"))
        nobody_reads.listen()
        with pytest.raises(GuestError, match=r"^the guest ended before it had come up$"):
            Agent(tmp_path / "silent.sock", 30.0, lambda: False)
