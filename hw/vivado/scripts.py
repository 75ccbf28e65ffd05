"""The vendor tool's scripts for one board.

project.tcl, program.tcl and build.sh are the same for all boards; settings.tcl says what they are about, and
ip.tcl makes the vendor's blocks.
"""

import hashlib
from pathlib import Path

__all__ = ["FIXED", "ip_script", "project_files"]

FIXED = {
    name: Path(__file__).with_name(name).read_text() for name in ("project.tcl", "program.tcl", "build.sh")
}
"""Name -> text of the scripts that are the same for all boards."""


def ip_script(ips):
    """Tcl that makes the vendor's blocks in the folder `ip_folder`.

    Properties are set one by one, in their order: some of them exist only after others, or put others back.
    """
    lines = ["# The vendor's blocks. Made by hw.build; sourced by project.tcl."]
    for ip in ips:
        lines += [
            f"create_ip -vendor {ip.vendor} -library {ip.library} -name {ip.name} -module_name {ip.module} -dir $ip_folder",
            *(
                f"set_property {_config(name)} {_braced(value)} [get_ips {ip.module}]"
                for name, value in ip.properties.items()
            ),
            *ip.after,
        ]
    return "\n".join(lines) + "\n"


def project_files(board, top, verilog, early, late, ips):
    """File name -> text: everything that the vendor's tool needs.

    top: name of the outermost module. verilog: its text with all below it. early: constraints read before
    synthesis. late: those read after it. ips: the vendor's blocks.
    """
    files = {
        f"{top}.v": verilog,
        f"{top}.xdc": early,
        f"{top}_cells.xdc": late,
        "ip.tcl": ip_script(ips),
        **FIXED,
    }
    settings = {
        "result": top,
        "top": top,
        "part": board.part,
        # The programmer knows devices of one die under a common name, such as xcu280_u55c.
        "device_pattern": f"*{board.platform.device.removeprefix('xc')}*",
        "sources": f"{top}.v",
        "early": f"{top}.xdc",
        "late": f"{top}_cells.xdc",
        "flash_device": board.flash.device,
        "flash_interface": board.flash.interface,
        "flash_megabytes": board.flash.megabytes,
        "flash_offset": f"0x{board.flash.offset:08x}",
    }
    text = f"# {board.title}. Made by hw.build.\n"
    text += "".join(f"set {name} {_braced(value)}\n" for name, value in settings.items())
    digest = hashlib.sha256()
    for name, content in sorted({**files, "settings.tcl": text}.items()):
        digest.update(f"{name}\0{content}\0".encode())
    files["settings.tcl"] = text + f"set digest {digest.hexdigest()[:16]}\n"
    return files


def _config(name):
    return name if name.startswith("CONFIG.") else f"CONFIG.{name}"


def _braced(value):
    text = str(value)
    if text.count("{") != text.count("}") or text.endswith("\\"):
        raise ValueError(f"a value for Tcl must have its braces in pairs, not {text!r}")
    return f"{{{text}}}"
