# Loads the board over JTAG: `vivado -mode batch -source program.tcl -tclargs fpga|flash [HOST:PORT]`.
#
# fpga: the bitstream, until the next power cycle. flash: the image, for good; then power-cycle the machine.
# HOST:PORT is where hw_server runs; without it this machine.

set here [file dirname [file normalize [info script]]]
source [file join $here settings.tcl]
proc fail {text} {
    puts "ERROR: $text"
    exit 1
}

set what [lindex $argv 0]
if {$what ni {fpga flash}} {
    fail "program.tcl takes fpga or flash, not \"$what\""
}
set file [file join $here $result.[expr {$what eq "fpga" ? "bit" : "mcs"}]]
if {![file exists $file]} {
    fail "there is no $file: run build.sh first"
}

open_hw_manager
if {[llength $argv] > 1} {
    connect_hw_server -url [lindex $argv 1]
} else {
    connect_hw_server
}
open_hw_target
set device [lindex [get_hw_devices -quiet $device_pattern] 0]
if {$device eq ""} {
    fail "no device $device_pattern on this JTAG chain, only: [get_hw_devices]"
}
current_hw_device $device

if {$what eq "fpga"} {
    set_property PROGRAM.FILE $file $device
    program_hw_devices $device
} else {
    create_hw_cfgmem -hw_device $device [lindex [get_cfgmem_parts $flash_device] 0]
    set memory [get_property PROGRAM.HW_CFGMEM $device]
    set_property PROGRAM.FILES [list $file] $memory
    set_property PROGRAM.ADDRESS_RANGE use_file $memory
    set_property PROGRAM.UNUSED_PIN_TERMINATION pull-none $memory
    if {[string match BPI* $flash_interface]} {
        set_property PROGRAM.BPI_RS_PINS none $memory
    }
    foreach {property value} {ERASE 1 BLANK_CHECK 0 CFG_PROGRAM 1 VERIFY 1} {
        set_property PROGRAM.$property $value $memory
    }
    # The flash is reached through a circuit in the FPGA.
    create_hw_bitstream -hw_device $device [get_property PROGRAM.HW_CFGMEM_BITFILE $device]
    program_hw_devices $device
    refresh_hw_device $device
    program_hw_cfgmem -hw_cfgmem $memory
}
close_hw_manager
