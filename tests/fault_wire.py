"""How the fault server puts a reply on the wire, whole or damaged; every function says whether it was whole."""

from __future__ import annotations

import asyncio
import socket
import struct

from fault_replies import Reply


async def send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """The reply as it is."""
    writer.write(reply.head() + reply.body)
    await writer.drain()
    return True


async def send_half(writer: asyncio.StreamWriter, reply: Reply, *, ends_with_reset: bool) -> bool:
    """Half of the body that the head announces; then a reset, or the caller closes the connection in good order."""
    writer.write(reply.head() + reply.body[: len(reply.body) // 2])
    await writer.drain()
    await asyncio.sleep(0.02)  # a reset takes along what the client has not read yet
    return reset(writer) if ends_with_reset else False


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply, seconds: float) -> bool:
    """One byte after the other, each soon enough for a time-out per read."""
    writer.write(reply.head())
    for position in range(len(reply.body)):
        if is_gone(reader, writer):
            return False
        writer.write(reply.body[position : position + 1])
        await writer.drain()
        await asyncio.sleep(seconds)
    return True


async def send_twice(writer: asyncio.StreamWriter, reply: Reply, late: float) -> bool:
    """The reply, and then the same once more, which the client may take for the reply to its next request."""
    whole = reply.head() + reply.body
    if late:
        writer.write(whole)
        await writer.drain()
        await asyncio.sleep(late)
        writer.write(whole)
    else:
        writer.write(whole + whole)
    await writer.drain()
    return True


async def pour(writer: asyncio.StreamWriter, reply: Reply, size: int) -> bool:
    """A body of this size, without a length that would give it away: blanks, and the object at their end."""
    writer.write(Reply(200, b"", (("transfer-encoding", "chunked"),)).head())
    blanks = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    for _ in range(size // 2**16):
        writer.write(blanks)
        await writer.drain()
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body))
    await writer.drain()
    return True


def reset(writer: asyncio.StreamWriter) -> bool:
    """Ends the connection with a reset instead of a regular close."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    return False


def is_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the client has closed the connection."""
    return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()
