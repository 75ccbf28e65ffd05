"""The contract between NIC and host: registers, messages, wire formats.

Plain Python with no dependency, so that the gateware (which turns these declarations into
layouts), the host (which packs and unpacks them) and the generated documentation all say
the same. No offset, width or code of the contract is written anywhere else.
"""
