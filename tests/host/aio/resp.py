"""A small key-value store that speaks RESP, the protocol of Redis: https://redis.io/docs/latest/develop/reference/protocol-spec/.

It knows HELLO (versions 2 and 3), PING, SET, GET, DEL, INCR, INCRBY, ECHO, and takes any CLIENT.
"""

from __future__ import annotations

import asyncio

__all__ = ["RespServer"]


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


class RespServer:
    """`serve` is a handler for asyncio's streams. commands: how many came."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.commands = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it goes."""
        version = 2
        try:
            while (line := await reader.readline()).endswith(b"\r\n"):
                assert line[:1] == b"*", line
                words = []
                for _ in range(int(line[1:])):
                    head = await reader.readline()
                    assert head[:1] == b"$", head
                    words.append((await reader.readexactly(int(head[1:]) + 2))[:-2])
                if words[0].upper() == b"HELLO" and words[1:2] in ([b"2"], [b"3"]):
                    version = int(words[1])
                writer.write(self.answer(words, version))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def answer(self, words: list[bytes], version: int) -> bytes:
        """The reply to a command in this version of the protocol."""
        self.commands += 1
        match [words[0].upper(), *words[1:]]:
            case [b"PING"]:
                return b"+PONG\r\n"
            case [b"HELLO", (b"2" | b"3"), *_]:
                fields = (b"server", b"redis", b"version", b"7.4.0", b"mode", b"standalone", b"role", b"master")
                head = b"%%%d\r\n" % (len(fields) // 2 + 1) if version == 3 else b"*%d\r\n" % (len(fields) + 2)
                return head + b"".join(map(_bulk, fields)) + _bulk(b"proto") + b":%d\r\n" % version
            case [b"ECHO", text]:
                return _bulk(text)
            case [b"SET", key, value]:
                self.data[key] = value
                return b"+OK\r\n"
            case [b"GET", key]:
                value = self.data.get(key)
                return _bulk(value) if value is not None else b"_\r\n" if version == 3 else b"$-1\r\n"
            case [b"DEL", *keys]:
                return b":%d\r\n" % sum(self.data.pop(key, None) is not None for key in keys)
            case [b"INCR", key] | [b"INCRBY", key, _]:
                number = int(self.data.get(key, b"0")) + int(words[2] if len(words) > 2 else b"1")
                self.data[key] = b"%d" % number
                return b":%d\r\n" % number
            case [b"CLIENT", *_]:
                return b"+OK\r\n"
        return b"-ERR unknown command '%b'\r\n" % words[0]
