// The C ABI of the shell: what surrounds the Verilated core in the simulator.
//
// One Shell owns one model. Nothing here is thread-safe per Shell; different Shells may run
// in different threads. Functions that can fail return 0 or a negative errno, and
// shell_message() says why in words.

#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct Shell;

enum { SHELL_ABI = 1, SHELL_PORTS_MAX = 2 };

// Why shell_run() returned; a set of bits.
enum ShellReason : uint32_t {
    SHELL_IDLE = 1,   // nothing is in flight, queued or busy
    SHELL_TX = 2,     // a frame waits in shell_tx()
    SHELL_IRQ = 4,    // a vector waits in shell_irq()
    SHELL_LIMIT = 8,  // max_cycles have passed
    SHELL_TICKED = 16,  // all ticks have been given (only if asked for)
};

// What shell_run() stops for, beside max_cycles; a set of bits.
enum ShellStop : uint32_t {
    SHELL_STOP_IDLE = 1,
    SHELL_STOP_TX = 2,
    SHELL_STOP_IRQ = 4,
    SHELL_STOP_TICKED = 8,
};

enum ShellProtection : uint32_t { SHELL_READ = 1, SHELL_WRITE = 2 };

struct ShellCounters {
    uint64_t cycles;
    uint64_t ticks;
    uint64_t irqs;
    uint64_t axi_read_bursts;
    uint64_t axi_read_beats;
    uint64_t axi_read_errors;  // beats answered with an error
    uint64_t axi_write_bursts;
    uint64_t axi_write_beats;
    uint64_t axi_write_bytes;   // with their strobe set
    uint64_t axi_write_errors;  // bursts answered with an error
    uint64_t axil_reads;
    uint64_t axil_writes;
    uint64_t rx_frames[SHELL_PORTS_MAX];
    uint64_t rx_bytes[SHELL_PORTS_MAX];
    uint64_t rx_beats[SHELL_PORTS_MAX];
    uint64_t tx_frames[SHELL_PORTS_MAX];
    uint64_t tx_bytes[SHELL_PORTS_MAX];
    uint64_t tx_beats[SHELL_PORTS_MAX];
    uint64_t violations;  // of AXI, AXI-Lite or AXI-Stream rules by the core
    uint64_t faults;      // memory that was mapped but has gone (a truncated file)
};

struct ShellTxInfo {
    uint32_t port;
    uint32_t length;
    uint32_t error;  // tuser on the last beat: a MAC would abort the frame
    uint32_t reserved;
    uint64_t first_cycle;
    uint64_t last_cycle;
};

enum ShellLogKind : uint32_t {
    SHELL_LOG_RX_FIRST = 1,    // where = port, value = frame number
    SHELL_LOG_RX_LAST = 2,     // where = port, value = frame number
    SHELL_LOG_TX_FIRST = 3,    // where = port, value = frame number
    SHELL_LOG_TX_LAST = 4,     // where = port, value = frame number
    SHELL_LOG_AXI_READ = 5,    // where = address, value = beats
    SHELL_LOG_AXI_WRITE = 6,   // where = address, value = beats; its last beat was taken
    SHELL_LOG_AXIL_WRITE = 7,  // where = address, value = data; it was answered
    SHELL_LOG_IRQ = 8,         // value = vector
};

struct ShellLogEntry {
    uint64_t cycle;
    uint64_t where;
    uint32_t value;
    uint32_t kind;
};

uint32_t shell_abi(void);
uint32_t shell_width(void);
uint32_t shell_ports(void);

Shell* shell_new(void);
void shell_free(Shell* shell);
const char* shell_message(const Shell* shell);

// Hold rst for `cycles` and forget everything queued; mappings and settings stay.
void shell_reset(Shell* shell, uint32_t cycles);

// Cycles from an accepted AR to its first beat, and from the last W beat to its B.
void shell_set_latency(Shell* shell, uint32_t read, uint32_t write);
// In a thousand cycles, how often AXI handshakes pause (seeded; 0: never, below 1000).
int shell_set_axi_stall(Shell* shell, uint32_t permille);
// Idle cycles between frames, and how often in a thousand a beat pauses (below 1000).
int shell_set_rx_pace(Shell* shell, uint32_t port, uint32_t gap, uint32_t permille);
// How often in a thousand TX is not ready; 1000: always.
int shell_set_tx_stall(Shell* shell, uint32_t port, uint32_t permille);
void shell_set_seed(Shell* shell, uint64_t seed);
// Cycles of quiet that count as idle.
void shell_set_settle(Shell* shell, uint32_t cycles);

// Memory. Addresses and sizes are multiples of 64. With fd < 0, shell_map() reserves the range
// without memory behind it. Overlap is -EEXIST; the descriptor may be closed afterwards.
int shell_map(Shell* shell, uint64_t iova, uint64_t size, int fd, uint64_t offset, uint32_t prot);
int shell_map_pointer(Shell* shell, uint64_t iova, uint64_t size, void* host, uint32_t prot);
// Undoes every mapping within the range and says how many bytes those had; -EINVAL if the range cuts one.
int shell_unmap(Shell* shell, uint64_t iova, uint64_t size, uint64_t* unmapped);
void shell_unmap_all(Shell* shell);
uint64_t shell_mappings(const Shell* shell);
uint64_t shell_mapped_bytes(const Shell* shell);  // of files
// While off, every access is refused as by a bridge above a device that is no bus master.
void shell_set_bus_master(Shell* shell, uint32_t on);

// Frames to the core: `count` of them back to back in `data`.
int shell_rx(Shell* shell, uint32_t port, const uint8_t* data, uint32_t length, uint32_t error);
int shell_rx_many(Shell* shell, uint32_t port, const uint8_t* data, const uint32_t* lengths, uint32_t count);
uint64_t shell_rx_pending(const Shell* shell, uint32_t port);
// Frames from the core: 1 and the frame, 0 if there is none, -ENOSPC (frame kept) if too long.
int shell_tx(Shell* shell, ShellTxInfo* info, uint8_t* data, uint32_t capacity);
// With 0, frames from the core are counted and logged but not kept.
void shell_set_tx_keep(Shell* shell, uint32_t keep);

int shell_irq(Shell* shell);  // a vector, or -1

int shell_write(Shell* shell, uint32_t address, uint32_t value, uint32_t strobe);
int shell_read(Shell* shell, uint32_t address, uint32_t* value, uint64_t max_cycles);

void shell_tick(Shell* shell, uint64_t count);
uint64_t shell_ticks_pending(const Shell* shell);

uint32_t shell_run(Shell* shell, uint64_t max_cycles, uint32_t stop);
uint64_t shell_cycle(const Shell* shell);
uint32_t shell_busy(const Shell* shell);
void shell_counters(const Shell* shell, ShellCounters* counters);

// Keep the last `capacity` events (0: off); shell_log_read() takes the oldest ones out.
void shell_set_log(Shell* shell, uint64_t capacity);
uint64_t shell_log_read(Shell* shell, ShellLogEntry* entries, uint64_t capacity);

// Waveforms, if the library was built with tracing; else -ENOTSUP.
int shell_trace_open(Shell* shell, const char* path);
void shell_trace_close(Shell* shell);
}
