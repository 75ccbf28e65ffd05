# Stand-ins for Vivado's commands: each writes down how it was called and makes the files that the real one makes.
#
# usage: tclsh standins.tcl LOG SLACK SCRIPT [ARGUMENT...]
# A command that is not listed here, or an option that is not, is an error: option names are those of the
# vendor's command reference (UG835), "=" after one means that it takes a value.

set log [open [lindex $argv 0] a]
set slack [lindex $argv 1]
set script [lindex $argv 2]
set argv [lrange $argv 3 end]
set ips {}
set properties [dict create]

proc touch {file} {
    set handle [open $file w]
    puts $handle "made by a stand-in"
    close $handle
}

# Splits what a command was called with; returns {options plain}.
proc parse {command options arguments} {
    set found [dict create]
    set plain {}
    for {set i 0} {$i < [llength $arguments]} {incr i} {
        set word [lindex $arguments $i]
        if {[string match -* $word] && "$word=" in $options} {
            dict set found $word [lindex $arguments [incr i]]
        } elseif {[string match -* $word] && $word in $options} {
            dict set found $word 1
        } elseif {[string match {-[a-z]*} $word]} {
            error "$command has no option $word"
        } else {
            lappend plain $word
        }
    }
    return [list $found $plain]
}

proc standin {name options {body {}}} {
    proc $name args [string map [list @NAME $name @OPTIONS [list $options] @BODY $body] {
        global log ips slack properties
        lassign [parse @NAME @OPTIONS $args] options plain
        puts $log [list @NAME {*}$args]
        flush $log
        @BODY
        return ""
    }]
}

standin create_project {-in_memory -part=}
standin current_project {} {return project}
standin current_design {} {return design}
standin open_checkpoint {} {if {![file exists [lindex $plain 0]]} {error "no such checkpoint"}}
standin create_ip {-vendor= -library= -name= -module_name= -dir=} {
    set module [dict get $options -module_name]
    lappend ips $module
    file mkdir [file join [dict get $options -dir] $module]
    touch [file join [dict get $options -dir] $module $module.xci]
}
standin get_ips {} {
    foreach name $plain {if {$name ni $ips} {error "no block $name"}}
    return [expr {[llength $plain] ? $plain : $ips}]
}
standin read_ip {} {lappend ips [file rootname [file tail [lindex $plain 0]]]}
standin generate_target {}
standin synth_ip {} {if {[info exists ::env(FAIL_AT)] && $::env(FAIL_AT) eq "synth_ip"} {error "interrupted"}}
standin read_verilog {} {if {![file exists [lindex $plain 0]]} {error "no such file"}}
standin read_xdc {} {uplevel #0 [list source [lindex $plain 0]]}
standin synth_design {-top= -part=}
standin get_cells {-quiet -hier -hierarchical -filter=}
standin get_pins {-quiet -of= -filter=}
standin get_clocks {-quiet -of_objects=}
standin all_fanin {-flat -startpoints_only}
standin set_false_path {-to=}
standin set_max_delay {-datapath_only -from= -to=}
standin set_bus_skew {-from= -to=}
standin set_property {} {
    lassign $plain name value objects
    dict set properties $objects $name $value
}
standin opt_design {}
standin place_design {}
standin phys_opt_design {}
standin route_design {} {if {[info exists ::env(FAIL_AT)] && $::env(FAIL_AT) eq "route_design"} {error "interrupted"}}
standin write_checkpoint {-force} {touch [lindex $plain 0]}
standin report_timing_summary {-max_paths= -file=} {touch [dict get $options -file]}
standin report_utilization {-hierarchical -file=} {touch [dict get $options -file]}
foreach name {report_clock_interaction report_cdc report_bus_skew report_drc report_power} {
    standin $name {-file=} {touch [dict get $options -file]}
}
standin get_timing_paths {-setup -hold -max_paths=} {return path}
standin get_property {} {
    lassign $plain name object
    if {$name eq "SLACK"} {return $slack}
    if {[dict exists $properties $object $name]} {return [dict get $properties $object $name]}
    return "value of $name"
}
standin write_bitstream {-force} {touch [lindex $plain 0]}
standin write_cfgmem {-force -format= -interface= -size= -loadbit= -file=} {touch [dict get $options -file]}

standin open_hw_manager {}
standin connect_hw_server {-url=}
standin open_hw_target {}
standin get_hw_devices {-quiet} {
    set devices {xcu50_u55n_0 debug_bridge_0}
    return [expr {[llength $plain] ? [lsearch -all -inline $devices [lindex $plain 0]] : $devices}]
}
standin current_hw_device {}
standin program_hw_devices {}
standin refresh_hw_device {}
standin get_cfgmem_parts {} {return [lindex $plain 0]}
standin create_hw_cfgmem {-hw_device=} {
    if {[llength $plain] != 1} {error "create_hw_cfgmem takes one memory"}
}
standin create_hw_bitstream {-hw_device=}
standin program_hw_cfgmem {-hw_cfgmem=}
standin close_hw_manager {}

source $script
