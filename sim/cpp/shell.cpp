// Shell around the Verilated core: MACs, AXI4 memory, AXI4-Lite master, interrupts, time.
//
// Compiled with the model it drives: ACCELTCP_WIDTH and ACCELTCP_PORTS say which shape it has.
// The shell behaves as registered logic: what it drives in a cycle depends on what it saw at
// the clock edges before.

#include "shell.hpp"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vacceltcp_nic.h"
#include "memory.hpp"
#include "verilated.h"
#if ACCELTCP_TRACE
#include "verilated_vcd_c.h"
#endif

namespace {

constexpr unsigned width = ACCELTCP_WIDTH;
constexpr unsigned ports = ACCELTCP_PORTS;
constexpr unsigned beat = Memory::beat;
constexpr uint32_t okay = 0, slverr = 2, decerr = 3;
constexpr uint8_t garbage = 0xa5;  // what stands in bytes that are not valid

// xorshift64*: reproducible pauses.
struct Random {
    uint64_t state = 0x9e3779b97f4a7c15;
    void seed(uint64_t value) { state = value * 0x9e3779b97f4a7c15 + 0x1234567; }
    bool chance(uint32_t permille) {
        if (!permille) return false;
        if (!state) state = 1;
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (state * 0x2545f4914f6cdd1d >> 32) % 1000 < permille;
    }
};

struct RxFrame {
    std::vector<uint8_t> data;
    bool error;
};

struct TxFrame {
    ShellTxInfo info;
    std::vector<uint8_t> data;
};

// Pins of one port. Wide ports are arrays of words, narrow ones integers; both lie in memory
// as little-endian bytes, so all are written and read as bytes.
struct RxPins {
    void* data;
    void* keep;
    CData *valid, *last, *user;
};

struct TxPins {
    const void* data;
    const void* keep;
    CData *valid, *last, *user, *ready;
};

struct RxPort {
    RxPins pins;
    std::deque<RxFrame> queue;
    size_t offset = 0;  // of the next beat in the first frame
    uint32_t gap = 0, permille = 0, wait = 0;
};

struct TxPort {
    TxPins pins;
    uint32_t permille = 0;
    bool open = false;  // inside a frame
    TxFrame frame;
};

struct ReadBurst {
    uint64_t address, due;
    uint32_t beats;
    uint8_t id;
};

struct WriteBurst {
    uint64_t address, first;
    uint32_t beats, left, response;
    uint8_t id;
};

struct WriteBeat {
    uint8_t data[beat];
    uint64_t strobe;
    bool last;
};

struct WriteAnswer {
    uint64_t due;
    uint8_t id, response;
};

struct LiteOp {
    bool write;
    uint8_t strobe;
    uint16_t address;
    uint32_t data;
};

bool parse_keep(uint64_t keep, unsigned& count) {
    count = keep ? 64 - __builtin_clzll(keep) : 0;
    return keep && (keep & (keep + 1)) == 0;
}

}  // namespace

struct Shell {
    VerilatedContext context;
    std::unique_ptr<Vacceltcp_nic> top;
#if ACCELTCP_TRACE
    std::unique_ptr<VerilatedVcdC> trace;
#endif
    Memory memory;
    Random random;
    ShellCounters count = {};
    std::string message;

    RxPort rx[ports];
    TxPort tx[ports];
    std::deque<TxFrame> sent;
    bool keep_sent = true;

    std::deque<ReadBurst> reads;
    bool r_loaded = false;
    std::deque<WriteBurst> writes;
    std::deque<WriteBeat> early;  // W beats ahead of their AW
    std::deque<WriteAnswer> answers;
    bool b_loaded = false;
    uint32_t read_latency = 1, write_latency = 1, axi_stall = 0;
    bool bus_master = true;

    std::deque<LiteOp> lite;
    bool lite_busy = false;
    uint32_t lite_result = 0;
    uint64_t lite_reads_done = 0, lite_reads_asked = 0;

    std::deque<uint8_t> irqs;
    uint64_t ticks = 0;
    uint32_t settle = 16;
    uint64_t log_capacity = 0;
    std::deque<ShellLogEntry> log;

    Shell() {
        context.threads(1);
        top = std::make_unique<Vacceltcp_nic>(&context);
        rx[0].pins = {&top->s_axis_rx0_tdata, &top->s_axis_rx0_tkeep, &top->s_axis_rx0_tvalid,
                      &top->s_axis_rx0_tlast, &top->s_axis_rx0_tuser};
        tx[0].pins = {&top->m_axis_tx0_tdata, &top->m_axis_tx0_tkeep, &top->m_axis_tx0_tvalid,
                      &top->m_axis_tx0_tlast, &top->m_axis_tx0_tuser, &top->m_axis_tx0_tready};
        static_assert(sizeof(top->s_axis_rx0_tdata) == width, "the model has another width");
        static_assert(sizeof(top->m_axi_wdata) == beat, "the AXI master must be 512 bits wide");
#if ACCELTCP_PORTS > 1
        rx[1].pins = {&top->s_axis_rx1_tdata, &top->s_axis_rx1_tkeep, &top->s_axis_rx1_tvalid,
                      &top->s_axis_rx1_tlast, &top->s_axis_rx1_tuser};
        tx[1].pins = {&top->m_axis_tx1_tdata, &top->m_axis_tx1_tkeep, &top->m_axis_tx1_tvalid,
                      &top->m_axis_tx1_tlast, &top->m_axis_tx1_tuser, &top->m_axis_tx1_tready};
#endif
        reset(8);
    }

    ~Shell() {
        trace_close();
        top->final();
    }

    int fail(int error, const char* format, ...) __attribute__((format(printf, 3, 4))) {
        char text[256];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        message = text;
        return error;
    }

    void violation(const char* format, ...) __attribute__((format(printf, 2, 3))) {
        char text[256];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        if (!count.violations++) message = text;  // the first one is the cause of the others
    }

    void note(uint32_t kind, uint64_t where, uint32_t value) {
        if (!log_capacity) return;
        if (log.size() >= log_capacity) log.pop_front();
        log.push_back({count.cycles, where, value, kind});
    }

    void trace_close() {
#if ACCELTCP_TRACE
        if (trace) trace->close();
        trace.reset();
#endif
    }

    void dump(unsigned phase) {
#if ACCELTCP_TRACE
        if (trace) trace->dump(2 * count.cycles + phase);
#else
        (void)phase;
#endif
    }

    void reset(uint32_t cycles) {
        for (auto& port : rx) {
            port.queue.clear();
            port.offset = 0;
            port.wait = 0;
            *port.pins.valid = 0;
        }
        for (auto& port : tx) {
            port.open = false;
            port.frame = {};
            *port.pins.ready = 0;
        }
        sent.clear();
        reads.clear();
        writes.clear();
        early.clear();
        answers.clear();
        lite.clear();
        irqs.clear();
        r_loaded = b_loaded = lite_busy = false;
        lite_reads_done = lite_reads_asked = 0;
        ticks = 0;
        top->m_axi_arready = top->m_axi_awready = top->m_axi_wready = 0;
        top->m_axi_rvalid = top->m_axi_bvalid = 0;
        top->s_axil_awvalid = top->s_axil_wvalid = top->s_axil_arvalid = 0;
        top->s_axil_bready = top->s_axil_rready = 0;
        top->s_axil_awprot = top->s_axil_arprot = 0;
        top->irq_ready = 0;
        top->tick = 0;
        top->rst = 1;
        for (uint32_t i = 0; i < (cycles ? cycles : 1); ++i) edge();
        top->rst = 0;
        edge();  // the core may take its reset through a register (see verilate.py)
    }

    // One clock cycle with the inputs as they are. Every change of `clk` is one (see verilate.py), except with waveforms,
    // which show a clock as it is.
    void edge() {
#if ACCELTCP_TRACE
        top->clk = 0;
        top->eval();
        dump(0);
#endif
        top->clk = !top->clk;
        top->eval();
        dump(1);
        ++count.cycles;
    }

    void step() {
        for (unsigned i = 0; i < ports; ++i) {
            drive_rx(i);
            *tx[i].pins.ready = !random.chance(tx[i].permille);
        }
        drive_axi();
        drive_lite();
        top->tick = ticks != 0;
        top->irq_ready = 1;
        // Outputs are those of the last edge: they come from registers, whatever the inputs are.
        for (unsigned i = 0; i < ports; ++i) take_tx(i);
        take_axi();
        take_lite();
        if (ticks) {
            --ticks;
            ++count.ticks;
        }
        if (top->irq_valid) {
            irqs.push_back(top->irq_vector);
            ++count.irqs;
            note(SHELL_LOG_IRQ, 0, top->irq_vector);
        }
        edge();
    }

    void drive_rx(unsigned index) {
        RxPort& port = rx[index];
        *port.pins.valid = 0;
        if (port.wait) {
            --port.wait;
            return;
        }
        if (port.queue.empty() || random.chance(port.permille)) return;
        const RxFrame& frame = port.queue.front();
        const size_t left = frame.data.size() - port.offset;
        const unsigned bytes = left < width ? unsigned(left) : width;
        const bool last = left <= width;
        uint8_t lanes[width];
        std::memcpy(lanes, frame.data.data() + port.offset, bytes);
        std::memset(lanes + bytes, garbage, width - bytes);
        std::memcpy(port.pins.data, lanes, width);
        const uint64_t keep = bytes == 64 ? ~uint64_t(0) : (uint64_t(1) << bytes) - 1;
        std::memcpy(port.pins.keep, &keep, width / 8);
        *port.pins.valid = 1;
        *port.pins.last = last;
        *port.pins.user = last && frame.error;
        ++count.rx_beats[index];
        if (!port.offset) note(SHELL_LOG_RX_FIRST, index, uint32_t(count.rx_frames[index]));
        port.offset += bytes;
        if (!last) return;
        note(SHELL_LOG_RX_LAST, index, uint32_t(count.rx_frames[index]));
        ++count.rx_frames[index];
        count.rx_bytes[index] += frame.data.size();
        port.queue.pop_front();
        port.offset = 0;
        port.wait = port.gap;
    }

    void take_tx(unsigned index) {
        TxPort& port = tx[index];
        if (!*port.pins.valid || !*port.pins.ready) return;
        uint64_t keep = 0;
        std::memcpy(&keep, port.pins.keep, width / 8);
        const bool last = *port.pins.last;
        unsigned bytes;
        if (!parse_keep(keep, bytes) || (!last && bytes != width))
            violation("m_axis_tx%u: tkeep 0x%llx with tlast %d", index, (unsigned long long)keep, last);
        ++count.tx_beats[index];
        TxFrame& frame = port.frame;
        if (!port.open) {
            frame.info = {index, 0, 0, 0, count.cycles, 0};
            frame.data.clear();
            note(SHELL_LOG_TX_FIRST, index, uint32_t(count.tx_frames[index]));
            port.open = true;
        }
        const auto* data = static_cast<const uint8_t*>(port.pins.data);
        if (keep_sent) frame.data.insert(frame.data.end(), data, data + bytes);
        frame.info.length += bytes;
        if (!last) return;
        frame.info.error = *port.pins.user;
        frame.info.last_cycle = count.cycles;
        note(SHELL_LOG_TX_LAST, index, uint32_t(count.tx_frames[index]));
        ++count.tx_frames[index];
        count.tx_bytes[index] += frame.info.length;
        if (keep_sent) sent.push_back(std::move(frame));
        frame = {};
        port.open = false;
    }

    uint32_t response_of(Memory::Access access) {
        if (access == Memory::Access::fault) ++count.faults;
        return access == Memory::Access::done ? okay : access == Memory::Access::refused ? slverr : decerr;
    }

    void drive_axi() {
        top->m_axi_arready = !random.chance(axi_stall);
        top->m_axi_awready = !random.chance(axi_stall);
        top->m_axi_wready = !random.chance(axi_stall);
        if (!r_loaded && !reads.empty() && reads.front().due <= count.cycles && !random.chance(axi_stall)) {
            const ReadBurst& burst = reads.front();
            uint8_t data[beat] = {};
            const uint32_t response = bus_master ? response_of(memory.read(burst.address, data)) : decerr;
            std::memcpy(&top->m_axi_rdata, data, beat);
            top->m_axi_rresp = response;
            top->m_axi_rid = burst.id;
            top->m_axi_rlast = burst.beats == 1;
            if (response != okay) ++count.axi_read_errors;
            r_loaded = true;
        }
        top->m_axi_rvalid = r_loaded;
        if (!b_loaded && !answers.empty() && answers.front().due <= count.cycles && !random.chance(axi_stall)) {
            top->m_axi_bid = answers.front().id;
            top->m_axi_bresp = answers.front().response;
            b_loaded = true;
        }
        top->m_axi_bvalid = b_loaded;
    }

    void check_burst(const char* name, uint64_t address, uint32_t beats, uint32_t size, uint32_t kind) {
        if (size != 6 || kind != 1) violation("m_axi %s: size %u burst %u, not 6 and 1", name, size, kind);
        if (address % beat || (address & 4095) + uint64_t(beats) * beat > 4096)
            violation("m_axi %s: %u beats at 0x%llx cross 4 KiB or are not aligned", name, beats,
                      (unsigned long long)address);
    }

    void take_axi() {
        if (top->m_axi_arvalid && top->m_axi_arready) {
            const uint32_t beats = top->m_axi_arlen + 1u;
            check_burst("AR", top->m_axi_araddr, beats, top->m_axi_arsize, top->m_axi_arburst);
            reads.push_back({top->m_axi_araddr, count.cycles + read_latency, beats, top->m_axi_arid});
            ++count.axi_read_bursts;
            note(SHELL_LOG_AXI_READ, top->m_axi_araddr, beats);
        }
        if (r_loaded && top->m_axi_rready) {
            ++count.axi_read_beats;
            ReadBurst& burst = reads.front();
            burst.address += beat;
            if (!--burst.beats) reads.pop_front();
            r_loaded = false;
        }
        if (top->m_axi_awvalid && top->m_axi_awready) {
            const uint32_t beats = top->m_axi_awlen + 1u;
            check_burst("AW", top->m_axi_awaddr, beats, top->m_axi_awsize, top->m_axi_awburst);
            writes.push_back(
                {top->m_axi_awaddr, top->m_axi_awaddr, beats, beats, okay, top->m_axi_awid});
        }
        if (top->m_axi_wvalid && top->m_axi_wready) {
            WriteBeat taken;
            std::memcpy(taken.data, &top->m_axi_wdata, beat);
            taken.strobe = top->m_axi_wstrb;
            taken.last = top->m_axi_wlast;
            early.push_back(taken);
        }
        while (!early.empty() && !writes.empty()) {
            store(early.front());
            early.pop_front();
        }
        if (b_loaded && top->m_axi_bready) {
            answers.pop_front();
            b_loaded = false;
        }
    }

    void store(const WriteBeat& taken) {
        WriteBurst& burst = writes.front();
        const uint32_t response =
            bus_master ? response_of(memory.write(burst.address, taken.data, taken.strobe)) : decerr;
        if (response > burst.response) burst.response = response;
        ++count.axi_write_beats;
        count.axi_write_bytes += uint64_t(__builtin_popcountll(taken.strobe));
        burst.address += beat;
        --burst.left;
        if (taken.last != (burst.left == 0))
            violation("m_axi W: wlast %d with %u beats left of %u", taken.last, burst.left, burst.beats);
        if (burst.left) return;
        if (burst.response != okay) ++count.axi_write_errors;
        ++count.axi_write_bursts;
        note(SHELL_LOG_AXI_WRITE, burst.first, burst.beats);
        answers.push_back({count.cycles + write_latency, burst.id, uint8_t(burst.response)});
        writes.pop_front();
    }

    void drive_lite() {
        top->s_axil_bready = 1;
        top->s_axil_rready = 1;
        if (lite_busy || lite.empty()) return;
        const LiteOp& op = lite.front();
        lite_busy = true;
        if (op.write) {
            top->s_axil_awaddr = op.address;
            top->s_axil_wdata = op.data;
            top->s_axil_wstrb = op.strobe;
            top->s_axil_awvalid = top->s_axil_wvalid = 1;
        } else {
            top->s_axil_araddr = op.address;
            top->s_axil_arvalid = 1;
        }
    }

    void take_lite() {
        // Requests go down at the coming edge: the pins keep their value until the next drive,
        // which happens before the next evaluation.
        const bool aw = top->s_axil_awvalid && top->s_axil_awready;
        const bool w = top->s_axil_wvalid && top->s_axil_wready;
        const bool ar = top->s_axil_arvalid && top->s_axil_arready;
        pending_aw = top->s_axil_awvalid && !aw;
        pending_w = top->s_axil_wvalid && !w;
        pending_ar = top->s_axil_arvalid && !ar;
        if (top->s_axil_bvalid) finish_lite(true, 0, top->s_axil_bresp);
        if (top->s_axil_rvalid) finish_lite(false, top->s_axil_rdata, top->s_axil_rresp);
    }

    bool pending_aw = false, pending_w = false, pending_ar = false;

    void lower_lite() {
        top->s_axil_awvalid = pending_aw;
        top->s_axil_wvalid = pending_w;
        top->s_axil_arvalid = pending_ar;
    }

    void finish_lite(bool write, uint32_t data, uint32_t response) {
        if (!lite_busy || lite.front().write != write) {
            violation("s_axil: a %s response that nobody asked for", write ? "write" : "read");
            return;
        }
        const LiteOp& op = lite.front();
        if (response != okay)
            violation("s_axil: response %u to the %s of 0x%x", response, write ? "write" : "read", op.address);
        if (write) {
            ++count.axil_writes;
            note(SHELL_LOG_AXIL_WRITE, op.address, op.data);
        } else {
            ++count.axil_reads;
            ++lite_reads_done;
            lite_result = data;
        }
        lite.pop_front();
        lite_busy = false;
    }

    void cycle() {
        step();
        lower_lite();
    }

    bool quiet() const {
        if (top->busy || ticks || !lite.empty() || !reads.empty() || !writes.empty() || !early.empty() ||
            !answers.empty())
            return false;
        for (unsigned i = 0; i < ports; ++i)
            if (!rx[i].queue.empty() || rx[i].wait || tx[i].open || *tx[i].pins.valid) return false;
        return true;
    }

    uint32_t run(uint64_t max_cycles, uint32_t stop) {
        const uint32_t wanted =
            (stop & SHELL_STOP_IDLE ? SHELL_IDLE : 0) | (stop & SHELL_STOP_TX ? SHELL_TX : 0) |
            (stop & SHELL_STOP_IRQ ? SHELL_IRQ : 0) | (stop & SHELL_STOP_TICKED ? SHELL_TICKED : 0);
        uint32_t calm = 0;
        for (uint64_t i = 0;; ++i) {
            uint32_t reason = 0;
            if (!sent.empty()) reason |= SHELL_TX;
            if (!irqs.empty()) reason |= SHELL_IRQ;
            if (calm >= settle && quiet()) reason |= SHELL_IDLE;
            if (!ticks && stop & SHELL_STOP_TICKED) reason |= SHELL_TICKED;
            if (i >= max_cycles) reason |= SHELL_LIMIT;
            if (reason & (wanted | SHELL_LIMIT)) return reason;
            cycle();
            calm = quiet() ? calm + 1 : 0;
        }
    }
};

extern "C" {

uint32_t shell_abi(void) { return SHELL_ABI; }
uint32_t shell_width(void) { return width; }
uint32_t shell_ports(void) { return ports; }

Shell* shell_new(void) { return new Shell; }
void shell_free(Shell* shell) { delete shell; }
const char* shell_message(const Shell* shell) { return shell->message.c_str(); }
void shell_reset(Shell* shell, uint32_t cycles) { shell->reset(cycles); }

void shell_set_latency(Shell* shell, uint32_t read, uint32_t write) {
    shell->read_latency = read ? read : 1;
    shell->write_latency = write ? write : 1;
}

int shell_set_axi_stall(Shell* shell, uint32_t permille) {
    if (permille >= 1000) return shell->fail(-EINVAL, "AXI stall must be below 1000, not %u", permille);
    shell->axi_stall = permille;
    return 0;
}

int shell_set_rx_pace(Shell* shell, uint32_t port, uint32_t gap, uint32_t permille) {
    if (port >= ports) return shell->fail(-EINVAL, "port must be below %u, not %u", ports, port);
    if (permille >= 1000) return shell->fail(-EINVAL, "RX pause must be below 1000, not %u", permille);
    shell->rx[port].gap = gap;
    shell->rx[port].permille = permille;
    return 0;
}

int shell_set_tx_stall(Shell* shell, uint32_t port, uint32_t permille) {
    if (port >= ports) return shell->fail(-EINVAL, "port must be below %u, not %u", ports, port);
    if (permille > 1000) return shell->fail(-EINVAL, "TX stall must be at most 1000, not %u", permille);
    shell->tx[port].permille = permille;
    return 0;
}

void shell_set_seed(Shell* shell, uint64_t seed) { shell->random.seed(seed); }
void shell_set_settle(Shell* shell, uint32_t cycles) { shell->settle = cycles; }

int shell_map(Shell* shell, uint64_t iova, uint64_t size, int fd, uint64_t offset, uint32_t prot) {
    const int error = shell->memory.map_file(iova, size, fd, offset, prot);
    if (!error) return 0;
    return shell->fail(error, "cannot map %llu bytes at 0x%llx: %s", (unsigned long long)size,
                       (unsigned long long)iova, strerror(-error));
}

int shell_map_pointer(Shell* shell, uint64_t iova, uint64_t size, void* host, uint32_t prot) {
    const int error = shell->memory.map_pointer(iova, size, host, prot);
    if (!error) return 0;
    return shell->fail(error, "cannot map %llu bytes at 0x%llx: %s", (unsigned long long)size,
                       (unsigned long long)iova, strerror(-error));
}

int shell_unmap(Shell* shell, uint64_t iova, uint64_t size, uint64_t* unmapped) {
    const int error = shell->memory.unmap(iova, size, unmapped);
    if (!error) return 0;
    return shell->fail(error, "%llu bytes at 0x%llx are not whole mappings", (unsigned long long)size,
                       (unsigned long long)iova);
}

void shell_unmap_all(Shell* shell) { shell->memory.unmap_all(); }
uint64_t shell_mappings(const Shell* shell) { return shell->memory.count(); }
uint64_t shell_mapped_bytes(const Shell* shell) { return shell->memory.owned(); }
void shell_set_bus_master(Shell* shell, uint32_t on) { shell->bus_master = on; }

int shell_rx_many(Shell* shell, uint32_t port, const uint8_t* data, const uint32_t* lengths, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
        if (const int error = shell_rx(shell, port, data, lengths[i], 0)) return error;
        data += lengths[i];
    }
    return 0;
}

int shell_rx(Shell* shell, uint32_t port, const uint8_t* data, uint32_t length, uint32_t error) {
    if (port >= ports) return shell->fail(-EINVAL, "port must be below %u, not %u", ports, port);
    if (!length) return shell->fail(-EINVAL, "a frame must have bytes, not 0");
    shell->rx[port].queue.push_back({std::vector<uint8_t>(data, data + length), error != 0});
    return 0;
}

uint64_t shell_rx_pending(const Shell* shell, uint32_t port) {
    return port < ports ? shell->rx[port].queue.size() : 0;
}

int shell_tx(Shell* shell, ShellTxInfo* info, uint8_t* data, uint32_t capacity) {
    if (shell->sent.empty()) return 0;
    const TxFrame& frame = shell->sent.front();
    *info = frame.info;
    if (frame.info.length > capacity)
        return shell->fail(-ENOSPC, "a frame of %u bytes does not fit %u", frame.info.length, capacity);
    std::memcpy(data, frame.data.data(), frame.data.size());
    shell->sent.pop_front();
    return 1;
}

void shell_set_tx_keep(Shell* shell, uint32_t keep) { shell->keep_sent = keep; }

int shell_irq(Shell* shell) {
    if (shell->irqs.empty()) return -1;
    const int vector = shell->irqs.front();
    shell->irqs.pop_front();
    return vector;
}

int shell_write(Shell* shell, uint32_t address, uint32_t value, uint32_t strobe) {
    if (address >= 0x10000 || address % 4 || strobe > 15)
        return shell->fail(-EINVAL, "no register write at 0x%x with strobe 0x%x", address, strobe);
    shell->lite.push_back({true, uint8_t(strobe), uint16_t(address), value});
    return 0;
}

int shell_read(Shell* shell, uint32_t address, uint32_t* value, uint64_t max_cycles) {
    if (address >= 0x10000 || address % 4) return shell->fail(-EINVAL, "no register read at 0x%x", address);
    shell->lite.push_back({false, 0, uint16_t(address), 0});
    const uint64_t wanted = ++shell->lite_reads_asked;
    for (uint64_t i = 0; shell->lite_reads_done != wanted; ++i) {
        if (i >= max_cycles)
            return shell->fail(-ETIMEDOUT, "no answer to a read of 0x%x within %llu cycles", address,
                               (unsigned long long)max_cycles);
        shell->cycle();
    }
    *value = shell->lite_result;
    return 0;
}

void shell_tick(Shell* shell, uint64_t count) { shell->ticks += count; }
uint64_t shell_ticks_pending(const Shell* shell) { return shell->ticks; }
uint32_t shell_run(Shell* shell, uint64_t max_cycles, uint32_t stop) { return shell->run(max_cycles, stop); }
uint64_t shell_cycle(const Shell* shell) { return shell->count.cycles; }
uint32_t shell_busy(const Shell* shell) { return shell->top->busy; }
void shell_counters(const Shell* shell, ShellCounters* counters) { *counters = shell->count; }

void shell_set_log(Shell* shell, uint64_t capacity) {
    shell->log_capacity = capacity;
    shell->log.clear();
}

uint64_t shell_log_read(Shell* shell, ShellLogEntry* entries, uint64_t capacity) {
    uint64_t taken = 0;
    for (; taken < capacity && !shell->log.empty(); ++taken) {
        entries[taken] = shell->log.front();
        shell->log.pop_front();
    }
    return taken;
}

int shell_trace_open(Shell* shell, const char* path) {
#if ACCELTCP_TRACE
    shell->context.traceEverOn(true);
    if (!shell->trace) {
        shell->trace = std::make_unique<VerilatedVcdC>();
        shell->top->trace(shell->trace.get(), 99);
    }
    shell->trace->open(path);
    if (shell->trace->isOpen()) return 0;
    shell->trace.reset();
    return shell->fail(-EIO, "cannot write waveforms to %s", path);
#else
    return shell->fail(-ENOTSUP, "this library was built without tracing, so not %s", path);
#endif
}

void shell_trace_close(Shell* shell) { shell->trace_close(); }
}
