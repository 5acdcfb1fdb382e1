# SPDX-License-Identifier: GPL-2.0-or-later
"""Layout of QEMU's migration stream: numbers only, no logic. All integers are big-endian.

Stream (``migration/savevm.c``: ``qemu_savevm_state_header``, ``qemu_savevm_state_complete_precopy``)::

    offset  width  type   field
    0       4      u32    magic 0x5145564d, "QEVM"
    4       4      u32    version, 3
    8       -             configuration section (machine types from 2.4 on)
    -       -             commands, RAM sections, FULL sections
    -       1      u8     EOF, 0
    -       -             vmdesc section, when there is one, then the end of the file

Configuration (``vmstate_configuration``)::

    0       1      u8     7
    1       4      u32    n
    5       n      bytes  machine type
    -       -             subsections: target-page-bits, capabilities, uuid

Section (``save_section_header``, ``save_section_footer``)::

    0       1      u8     START 1, PART 2, END 3, FULL 4
    1       4      u32    section_id
    5       1      u8     n                  } START and FULL only
    6       n      bytes  idstr              }
    6+n     4      u32    instance_id        }
    10+n    4      u32    version_id         }
    -       -             payload, its length is not on the wire
    -       1      u8     footer 0x7e        } machine types from 2.4 on
    -       4      u32    section_id again   }

Subsection (``migration/vmstate.c``: ``vmstate_subsection_save``)::

    0       1      u8     5
    1       1      u8     n
    2       n      bytes  name
    2+n     4      u32    version_id
    -       -             fields, then nested subsections

Command (``qemu_savevm_command_send``)::

    0       1      u8     8
    1       2      u16    command
    3       2      u16    n
    5       n      bytes  data

vmdesc (``qemu_savevm_state_complete_precopy_non_iterable``)::

    0       1      u8     6
    1       4      u32    n
    5       n      bytes  JSON

RAM record (``migration/ram.c``: ``save_page_header``, ``ram_load_precopy``)::

    0       8      u64    page address | flags
    8       1      u8     n                  } page records without CONTINUE
    9       n      bytes  RAM block's idstr  }
    -       -             by flag: PAGE a page; ZERO u8 fill; XBZRLE u8 1, u16 n, n bytes;
                          COMPRESS u32 n, n bytes; MEM_SIZE the block list; FLUSH and EOS nothing

Block list of MEM_SIZE (``ram_save_setup``), until the sizes add up to the record's address::

    0       1      u8     n
    1       n      bytes  RAM block's idstr
    1+n     8      u64    size in bytes
    9+n     8      u64    address            with capability x-ignore-shared only
    -       -             mapped pages       with capability mapped-ram only

Mapped pages (``struct MappedRamHeader``); what follows in the stream stands behind the last page::

    0       4      u32    version, 1
    4       8      u64    page size
    12      8      u64    b, offset of the bitmap in the file: behind this header
    20      8      u64    p, offset of the pages in the file
    b       -      bytes  bitmap, a bit for each page that is there, the lowest first; whole words of 8 bytes
    p       -      bytes  pages, each in its place
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Self

MAGIC = 0x5145564D
VERSION = 3
FOOTER = 0x7E
PAGE_SIZE = 4096
RAM_IDSTR = "ram"
RAM_VERSION = 4
XBZRLE_ENCODING = 1
MAPPED_RAM_VERSION = 1

U8 = struct.Struct(">B")
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
FILE_HEADER = struct.Struct(">II")
SECTION_ID = struct.Struct(">BI")
INSTANCE_VERSION = struct.Struct(">II")
COMMAND = struct.Struct(">BHH")
VMDESC = struct.Struct(">BI")
MAPPED_RAM = struct.Struct(">IQQQ")


class _OpenEnum(IntEnum):
    """An IntEnum that lets values through which it does not know; they are named UNKNOWN_<value>."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member


class SectionType(_OpenEnum):
    """First byte of each part of a stream (``migration/savevm.h``: ``QEMU_VM_*``)."""

    EOF = 0
    START = 1
    PART = 2
    END = 3
    FULL = 4
    SUBSECTION = 5
    VMDESCRIPTION = 6
    CONFIGURATION = 7
    COMMAND = 8


class CommandType(_OpenEnum):
    """Commands inside a stream (``migration/savevm.c``: ``enum qemu_vm_cmd``)."""

    INVALID = 0
    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


class RamFlag(_OpenEnum):
    """Low bits of a RAM record's first word (``migration/ram.c``: ``RAM_SAVE_FLAG_*``).

    COMPRESS went away in QEMU 9.1, FLUSH (of multifd) came in 8.1, HOOK is RDMA only.
    """

    FULL = 0x01
    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20
    XBZRLE = 0x40
    HOOK = 0x80
    COMPRESS = 0x100
    FLUSH = 0x200
