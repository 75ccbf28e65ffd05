// A stand-in for the core with the same ports, for fast tests of the simulator.
//
// Frames that come in on a port go out on it. Registers: 0x00 'ATCP'; 0x1c scratch; 0x40, 0x44
// bus address; 0x48 pattern; 0x4c command (bits 3:0: 1 reads, 2 writes; bits 11:8: beats - 1;
// bits 31:16: low 16 strobe bits of a write, repeated); 0x50 first word read; 0x54 worst
// response; 0x58 busy; 0x5c writes raise this vector; 0x60 ticks; 0x64 sticks `busy`;
// 0x68 frames looped on port 0.
`define PORTS 1

module stub_loop #(parameter W = 64) (
    input clk, input rst,
    input [8*W-1:0] rx_tdata, input [W-1:0] rx_tkeep, input rx_tvalid, input rx_tlast, input rx_tuser,
    output [8*W-1:0] tx_tdata, output [W-1:0] tx_tkeep, output tx_tvalid, input tx_tready,
    output tx_tlast, output tx_tuser, output empty, output reg [31:0] frames
);
    reg [9*W+1:0] fifo [0:2047];
    reg [10:0] head, tail;
    assign empty = head == tail;
    assign tx_tvalid = !empty;
    assign {tx_tuser, tx_tlast, tx_tkeep, tx_tdata} = fifo[head];
    always @(posedge clk) begin
        if (rst) begin
            head <= 0;
            tail <= 0;
            frames <= 0;
        end else begin
            if (rx_tvalid) begin
                fifo[tail] <= {rx_tuser, rx_tlast, rx_tkeep, rx_tdata};
                tail <= tail + 1;
            end
            if (tx_tvalid && tx_tready) begin
                head <= head + 1;
                if (tx_tlast) frames <= frames + 1;
            end
        end
    end
endmodule

module acceltcp_nic #(parameter W = 64) (
    input clk, input rst, input tick,
    input [8*W-1:0] s_axis_rx0_tdata, input [W-1:0] s_axis_rx0_tkeep, input s_axis_rx0_tvalid,
    input s_axis_rx0_tlast, input s_axis_rx0_tuser,
    output [8*W-1:0] m_axis_tx0_tdata, output [W-1:0] m_axis_tx0_tkeep, output m_axis_tx0_tvalid,
    input m_axis_tx0_tready, output m_axis_tx0_tlast, output m_axis_tx0_tuser,
`if_two
    input [8*W-1:0] s_axis_rx1_tdata, input [W-1:0] s_axis_rx1_tkeep, input s_axis_rx1_tvalid,
    input s_axis_rx1_tlast, input s_axis_rx1_tuser,
    output [8*W-1:0] m_axis_tx1_tdata, output [W-1:0] m_axis_tx1_tkeep, output m_axis_tx1_tvalid,
    input m_axis_tx1_tready, output m_axis_tx1_tlast, output m_axis_tx1_tuser,
`end_two
    output [1:0] m_axi_awid, output [63:0] m_axi_awaddr, output [7:0] m_axi_awlen,
    output [2:0] m_axi_awsize, output [1:0] m_axi_awburst, output reg m_axi_awvalid, input m_axi_awready,
    output [511:0] m_axi_wdata, output [63:0] m_axi_wstrb, output m_axi_wlast, output reg m_axi_wvalid,
    input m_axi_wready,
    input [1:0] m_axi_bid, input [1:0] m_axi_bresp, input m_axi_bvalid, output m_axi_bready,
    output [1:0] m_axi_arid, output [63:0] m_axi_araddr, output [7:0] m_axi_arlen,
    output [2:0] m_axi_arsize, output [1:0] m_axi_arburst, output reg m_axi_arvalid, input m_axi_arready,
    input [1:0] m_axi_rid, input [511:0] m_axi_rdata, input [1:0] m_axi_rresp, input m_axi_rlast,
    input m_axi_rvalid, output m_axi_rready,
    input [15:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
    input [15:0] s_axil_araddr, input [2:0] s_axil_arprot, input s_axil_arvalid, output s_axil_arready,
    output reg [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready,
    output reg irq_valid, output reg [5:0] irq_vector, input irq_ready,
    output busy
);
    wire empty0;
    wire [31:0] frames0;
    stub_loop #(W) loop0 (
        clk, rst, s_axis_rx0_tdata, s_axis_rx0_tkeep, s_axis_rx0_tvalid, s_axis_rx0_tlast, s_axis_rx0_tuser,
        m_axis_tx0_tdata, m_axis_tx0_tkeep, m_axis_tx0_tvalid, m_axis_tx0_tready, m_axis_tx0_tlast,
        m_axis_tx0_tuser, empty0, frames0);
`if_two
    wire empty1;
    wire [31:0] frames1;
    stub_loop #(W) loop1 (
        clk, rst, s_axis_rx1_tdata, s_axis_rx1_tkeep, s_axis_rx1_tvalid, s_axis_rx1_tlast, s_axis_rx1_tuser,
        m_axis_tx1_tdata, m_axis_tx1_tkeep, m_axis_tx1_tvalid, m_axis_tx1_tready, m_axis_tx1_tlast,
        m_axis_tx1_tuser, empty1, frames1);
`end_two

    reg [63:0] address;
    reg [31:0] scratch, pattern, first, ticks;
    reg [15:0] strobe;
    reg [3:0] length;
    reg [1:0] worst;
    reg reading, writing, got_first, stuck;
    reg [7:0] sent;
    wire working = reading || writing;
    assign busy = working || stuck || !empty0;

    assign {m_axi_awid, m_axi_awlen, m_axi_awsize, m_axi_awburst} = {2'd1, 4'd0, length, 3'd6, 2'd1};
    assign {m_axi_arid, m_axi_arlen, m_axi_arsize, m_axi_arburst} = {2'd2, 4'd0, length, 3'd6, 2'd1};
    assign m_axi_awaddr = address;
    assign m_axi_araddr = address;
    assign m_axi_wdata = {16{pattern + {24'd0, sent}}};
    assign m_axi_wstrb = {4{strobe}};
    assign m_axi_wlast = sent == {4'd0, length};
    assign m_axi_bready = 1;
    assign m_axi_rready = 1;
    // As all outputs of the core, it does not depend on inputs; the shell raises both requests together.
    assign s_axil_awready = !s_axil_bvalid;
    assign s_axil_wready = s_axil_awready;
    assign s_axil_arready = !s_axil_rvalid;
    assign s_axil_bresp = 0;
    assign s_axil_rresp = 0;

    always @(posedge clk) begin
        irq_valid <= irq_valid && !irq_ready;
        if (s_axil_bready) s_axil_bvalid <= 0;
        if (s_axil_rready) s_axil_rvalid <= 0;
        if (tick) ticks <= ticks + 1;
        if (m_axi_arready) m_axi_arvalid <= 0;
        if (m_axi_awready) m_axi_awvalid <= 0;
        if (m_axi_wvalid && m_axi_wready) begin
            sent <= sent + 1;
            if (m_axi_wlast) m_axi_wvalid <= 0;
        end
        if (m_axi_rvalid) begin
            if (!got_first) first <= m_axi_rdata[31:0];
            got_first <= 1;
            if (m_axi_rresp > worst) worst <= m_axi_rresp;
            if (m_axi_rlast) reading <= 0;
        end
        if (m_axi_bvalid) begin
            worst <= m_axi_bresp;
            writing <= 0;
        end
        if (s_axil_awvalid && s_axil_awready) begin
            s_axil_bvalid <= 1;
            case (s_axil_awaddr)
                16'h1c: begin
                    if (s_axil_wstrb[0]) scratch[7:0] <= s_axil_wdata[7:0];
                    if (s_axil_wstrb[1]) scratch[15:8] <= s_axil_wdata[15:8];
                    if (s_axil_wstrb[2]) scratch[23:16] <= s_axil_wdata[23:16];
                    if (s_axil_wstrb[3]) scratch[31:24] <= s_axil_wdata[31:24];
                end
                16'h40: address[31:0] <= s_axil_wdata;
                16'h44: address[63:32] <= s_axil_wdata;
                16'h48: pattern <= s_axil_wdata;
                16'h4c: if (!working) begin
                    length <= s_axil_wdata[11:8];
                    strobe <= s_axil_wdata[31:16];
                    worst <= 0;
                    sent <= 0;
                    got_first <= 0;
                    reading <= s_axil_wdata[3:0] == 1;
                    m_axi_arvalid <= s_axil_wdata[3:0] == 1;
                    writing <= s_axil_wdata[3:0] == 2;
                    m_axi_awvalid <= s_axil_wdata[3:0] == 2;
                    m_axi_wvalid <= s_axil_wdata[3:0] == 2;
                end
                16'h5c: begin
                    irq_valid <= 1;
                    irq_vector <= s_axil_wdata[5:0];
                end
                16'h64: stuck <= s_axil_wdata[0];
                default: ;
            endcase
        end
        if (s_axil_arvalid && s_axil_arready) begin
            s_axil_rvalid <= 1;
            case (s_axil_araddr)
                16'h00: s_axil_rdata <= 32'h50435441;
                16'h1c: s_axil_rdata <= scratch;
                16'h50: s_axil_rdata <= first;
                16'h54: s_axil_rdata <= {30'd0, worst};
                16'h58: s_axil_rdata <= {31'd0, working};
                16'h60: s_axil_rdata <= ticks;
                16'h68: s_axil_rdata <= frames0;
                default: s_axil_rdata <= 0;
            endcase
        end
        if (rst) begin
            {s_axil_bvalid, s_axil_rvalid, irq_valid, stuck, reading, writing} <= 0;
            {m_axi_arvalid, m_axi_awvalid, m_axi_wvalid} <= 0;
            {scratch, pattern, first, ticks, address, strobe, length, worst, sent, got_first} <= 0;
        end
    end
endmodule
