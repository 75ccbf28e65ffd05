# From Verilog to bitstream and flash image: `vivado -mode batch -source project.tcl`, or build.sh.
#
# What is built stands in settings.tcl. Work goes on in work/DIGEST, named after all inputs: run again after an
# interruption, this goes on from the last whole checkpoint; after a change of any input it begins anew.
# Results appear beside this file only when they are complete.

set here [file dirname [file normalize [info script]]]
source [file join $here settings.tcl]
set work [file join $here work $digest]
file mkdir $work
set reports {timing utilisation utilisation_by_module clock_interaction cdc bus_skew drc power}
foreach file [list $result.bit $result.mcs] {
    file delete [file join $here $file]
}
foreach report $reports {
    file delete [file join $here $report.rpt]
}

# Lines with this mark tell hw.build how far the run is.
proc stage {text} {
    puts "ACCELTCP: $text"
    flush stdout
}

proc fail {text} {
    puts "ERROR: $text"
    exit 1
}

# A checkpoint under its name is a whole one.
proc checkpoint {name} {
    global work
    set part [file join $work part.dcp]
    write_checkpoint -force $part
    file rename -force $part [file join $work $name.dcp]
}

proc make_ips {} {
    global here work
    set folder [file join $work ip]
    set whole [file join $folder whole]
    if {[file exists $whole]} {
        foreach file [lsort [glob -nocomplain -directory $folder */*.xci]] {
            read_ip $file
        }
        return
    }
    file delete -force $folder
    file mkdir $folder
    set ip_folder $folder
    # It reads properties back, and complains of those that have not held.
    if {[catch {source [file join $here ip.tcl]} words]} {
        fail $words
    }
    foreach ip [lsort [get_ips]] {
        stage "vendor block $ip"
        generate_target all [get_ips $ip]
        synth_ip [get_ips $ip]
    }
    close [open $whole w]
}

# Amaranth marks the first registers of its synchronisers with these.
proc constrain_synchronisers {} {
    foreach cell [get_cells -quiet -hier -filter {amaranth.vivado.false_path == "TRUE"}] {
        set_false_path -to $cell
    }
    foreach pin [get_pins -quiet -of [get_cells -quiet -hier -filter {amaranth.vivado.false_path_pre == "TRUE"}] \
                     -filter {REF_PIN_NAME == PRE}] {
        set_false_path -to $pin
    }
    foreach cell [get_cells -quiet -hier -filter {amaranth.vivado.max_delay != ""}] {
        set clock [get_clocks -quiet -of_objects [all_fanin -flat -startpoints_only [get_pins $cell/D]]]
        if {[llength $clock]} {
            set_max_delay -datapath_only -from $clock -to $cell [get_property amaranth.vivado.max_delay $cell]
        }
    }
}

proc synthesise {} {
    global here part top sources early late
    make_ips
    stage "synthesis"
    foreach file $sources {
        read_verilog [file join $here $file]
    }
    foreach file $early {
        read_xdc [file join $here $file]
    }
    synth_design -top $top -part $part
    # These speak of cells, which are there only now.
    constrain_synchronisers
    foreach file $late {
        read_xdc [file join $here $file]
    }
    checkpoint synthesised
}

proc place {} {
    stage "optimisation"
    opt_design
    stage "placement"
    place_design
    stage "physical optimisation"
    phys_opt_design
    checkpoint placed
}

proc route {} {
    stage "routing"
    route_design
    stage "physical optimisation after routing"
    phys_opt_design
    checkpoint routed
}

set steps {synthesised synthesise placed place routed route}
set done ""
foreach {name step} $steps {
    if {[file exists [file join $work $name.dcp]]} {
        set done $name
    }
}
if {$done eq ""} {
    create_project -in_memory -part $part
} else {
    stage "going on from checkpoint $done"
    open_checkpoint [file join $work $done.dcp]
}
set pending [expr {$done eq ""}]
foreach {name step} $steps {
    if {$pending} {
        $step
    }
    if {$name eq $done} {
        set pending 1
    }
}

stage "reports"
report_timing_summary -max_paths 10 -file [file join $work timing.rpt]
report_utilization -file [file join $work utilisation.rpt]
report_utilization -hierarchical -file [file join $work utilisation_by_module.rpt]
report_clock_interaction -file [file join $work clock_interaction.rpt]
report_cdc -file [file join $work cdc.rpt]
report_bus_skew -file [file join $work bus_skew.rpt]
report_drc -file [file join $work drc.rpt]
report_power -file [file join $work power.rpt]
foreach report $reports {
    file rename -force [file join $work $report.rpt] [file join $here $report.rpt]
}
foreach kind {setup hold} {
    set path [get_timing_paths -$kind -max_paths 1]
    if {[llength $path] && [get_property SLACK $path] < 0} {
        fail "timing is not met: worst $kind slack [get_property SLACK $path] ns, see timing.rpt; no bitstream is written"
    }
}

# (write_cfgmem splits its words at spaces: no path for it.)
cd $work
stage "bitstream"
write_bitstream -force $result.bit
stage "flash image"
write_cfgmem -force -format mcs -interface $flash_interface -size $flash_megabytes \
    -loadbit "up $flash_offset $result.bit" -file $result.mcs
foreach file [list $result.bit $result.mcs] {
    file rename -force $file [file join $here $file]
}
stage "complete"
