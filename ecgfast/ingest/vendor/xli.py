"""XLI, the compression of Philips Sierra files: LZW codes of 10 bits over second differences.

One block per lead: int32 bytes of codes, int16 unused, int16 first difference (all little-endian),
then the codes, most significant bit first. They unpack to the high bytes of all samples, then their
low bytes. All arithmetic wraps at 16 bits, as in the devices.

Source: facts of github.com/sixlettervariables/sierra-ecg-tools, whose reader is the tests' oracle.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import cut_short

_HEADER_BYTES = 8
_CODE_BITS = 10
_LAST_CODE = 1022  # 1023 ends a block
_FIRST_FREE = 256
_BIAS = 64  # of the stored second differences


def unpack(
    content: bytes, num_leads: int, num_timesteps: int, source: str
) -> list[NDArray[np.int16]]:
    """Decode the blocks of the leads that a file names; devices write up to 16.

    Args:
        content: the blocks, one behind another.
        num_leads: how many blocks are wanted.
        num_timesteps: of each lead, as the file promises; a block of more is refused before it
            grows.
        source: named in errors.
    Returns:
        (T,) int16 of each lead; III, aVR, aVL and aVF are what their formulas leave
        (`rebuilt_limb_leads`).
    Raises:
        FormatError: a block is damaged, or holds another number of timesteps.
    """
    leads: list[NDArray[np.int16]] = []
    at = 0
    for _ in range(num_leads):
        size = int.from_bytes(content[at : at + 4], "little")
        first = int.from_bytes(content[at + 6 : at + 8], "little", signed=True)
        at += _HEADER_BYTES
        if at + size > len(content):
            raise cut_short(
                f"{source}: block {len(leads) + 1} of {num_leads} ends behind the samples; export "
                "the file again"
            )
        octets = _unpack_codes(content[at : at + size], 2 * num_timesteps + 1, source)
        at += size
        if len(octets) // 2 != num_timesteps:
            raise _damaged(
                f"{source}: an XLI block holds {len(octets) // 2:,} timesteps, the file promises "
                f"{num_timesteps:,}"
            )
        leads.append(_undifferenced(octets, num_timesteps, first))
    return leads


def rebuilt_limb_leads(stored: Mapping[str, NDArray[np.int16]]) -> dict[str, NDArray[np.int16]]:
    """Return III, aVR, aVL and aVF, of what is stored of them.

    Args:
        stored: name -> (T,), of any leads.
    Returns:
        those whose formula has all that it needs: I and II, and of aVL and aVF also III.
    """
    if not {"I", "II"} <= stored.keys():
        return {}
    one, two = stored["I"].astype(np.int64), stored["II"].astype(np.int64)
    formulas = {"III": two - one, "aVR": -((one + two) // 2)}
    if "III" in stored:
        three = (formulas["III"] - stored["III"]).astype(np.int16).astype(np.int64)
        formulas |= {"aVL": (one - three) // 2, "aVF": (two + three) // 2}
    return {
        name: (whole - stored[name]).astype(np.int16)
        for name, whole in formulas.items()
        if name in stored
    }


def _unpack_codes(block: bytes, most: int, source: str) -> bytes:
    """LZW whose table is never emptied: full, it stays as it is."""
    bits = np.unpackbits(np.frombuffer(block, np.uint8))
    codes = bits[: len(bits) // _CODE_BITS * _CODE_BITS].reshape(-1, _CODE_BITS) @ (
        1 << np.arange(_CODE_BITS - 1, -1, -1)
    )
    table = [bytes([value]) for value in range(_FIRST_FREE)]
    found: list[bytes] = []
    length = 0
    before = b""
    for code in codes.tolist():
        if code > _LAST_CODE:
            break
        if code < len(table):
            entry = table[code]
        elif code == len(table) and before:
            entry = before + before[:1]
        else:
            raise _damaged(f"{source}: an XLI block has a code that is not defined yet")
        if before and len(table) <= _LAST_CODE:
            table.append(before + entry[:1])
        found.append(entry)
        before = entry
        length += len(entry)
        if length > most:
            raise _damaged(f"{source}: an XLI block unpacks to more than {most:,} bytes")
    return b"".join(found)


def _undifferenced(octets: bytes, num_timesteps: int, first: int) -> NDArray[np.int16]:
    """Sum up second differences: x[n] = 2 x[n-1] - x[n-2] - d[n-1], d[1] in the header."""
    high, low = np.frombuffer(octets[: 2 * num_timesteps], np.uint8).reshape(2, -1).astype(np.int64)
    stored = high << 8 | low  # modulo 2^16, like all that follows
    change = np.zeros(num_timesteps, np.int64)
    change[:2] = stored[:2]
    change[1:2] -= stored[:1]
    change[2:3] = -first
    change[3:] = _BIAS - stored[2:-1]
    change[1:] = np.cumsum(change[1:]) & 0xFFFF
    return np.cumsum(change).astype(np.uint16).view(np.int16)


def _damaged(message: str) -> FormatError:
    return FormatError(f"{message}; export the file again", reason="the file is damaged")
