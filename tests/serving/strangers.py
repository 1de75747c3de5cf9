"""200 strangers at a policy server, who do it no good: `python strangers.py PORT SECONDS`."""

import asyncio
import contextlib
import sys
import time

import msgpack
import numpy as np

HANDSHAKE = (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
             b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
STRANGERS = 200


def frame(data, opcode=2, announced=None):
  """Returns a client's frame, under a mask of zeros."""
  size = len(data) if announced is None else announced
  return bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big") + bytes(4) + data


def array(data, shape, dtype="|u1"):
  return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def absurd(state, prompt="do something"):
  """Returns the packed observation of a broken Panda."""
  picture = array(bytes(64 * 64 * 3), [64, 64, 3])
  return msgpack.packb({"image": {"base_0_rgb": picture, "left_wrist_0_rgb": picture}, "prompt": prompt,
                        "state": array(np.full(10, state).tobytes(), [10], "<f8")})


def attacks(rng):
  """Returns what strangers send, each with how long they stay afterwards (s)."""
  large = int(rng.integers(1 << 20, 8 << 20))
  return [
    (frame(rng.bytes(int(rng.integers(1, 1 << 16)))), 0.1),
    (frame(b"\xdd\x00\x98\x96\x80" * 1000), 0.1), (frame(b"\x91" * 100_000), 0.1),
    (frame(b"\xdc\xff\xff" + b"\x80" * 0xFFFF), 0.1),
    (frame(bytes(large), announced=large + 1000), 5.0),  # never complete
    (frame(msgpack.packb({"x": bytes(large)})), 0.5),
    (frame(msgpack.packb(array(b"", [0] + [2**31] * 40))), 0.1),
    (frame(b"", announced=1 << 40), 0.5), (frame(b"text", opcode=1), 0.1),
    (b"".join(frame(bytes(125), opcode=9) for _ in range(2000)), 1.0),  # pings, whose answers nobody reads
    (b"".join(frame(b"") for _ in range(5000)), 0.5),
    (b"\x02\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 5000, 0.5),
    (frame(absurd(np.nan)), 0.1), (frame(absurd(1e38)), 0.1), (frame(absurd(0.0, "x" * 1_000_000)), 0.1),
    (b"", 5.0), (b"", 0.0),
  ]


async def strange(port, until, seed):
  rng = np.random.default_rng(seed)
  while time.monotonic() < until:
    choices = attacks(rng)
    data, stay_s = choices[rng.integers(len(choices))]
    with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
      reader, writer = await asyncio.open_connection("127.0.0.1", port)
      try:
        if rng.random() < 0.1:  # a handshake that never ends
          writer.write(HANDSHAKE[:50])
          await asyncio.sleep(5.0)
          continue
        writer.write(HANDSHAKE)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5.0)
        writer.write(data)
        await asyncio.wait_for(writer.drain(), 5.0)
        await asyncio.sleep(stay_s)
      finally:
        writer.close()
    await asyncio.sleep(0.2 * rng.random())


async def all_strangers(port, seconds):
  until = time.monotonic() + seconds
  await asyncio.gather(*(strange(port, until, seed) for seed in range(STRANGERS)))


if __name__ == "__main__":
  asyncio.run(all_strangers(int(sys.argv[1]), float(sys.argv[2])))
