// Host memory as the device sees it: mapped regions by bus address.

#pragma once

#include <cstdint>
#include <map>

class Memory {
public:
    enum class Access { done, unmapped, refused, fault };
    static constexpr unsigned beat = 64;

    Memory();
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // Each returns 0 or a negative errno.
    int map_file(uint64_t iova, uint64_t size, int fd, uint64_t offset, uint32_t prot);
    int map_pointer(uint64_t iova, uint64_t size, void* host, uint32_t prot);
    int unmap(uint64_t iova, uint64_t size, uint64_t* unmapped);  // all regions in the range; none may be cut
    void unmap_all();
    uint64_t count() const { return regions_.size(); }
    uint64_t owned() const { return owned_; }  // bytes of files

    // One beat at a multiple of 64. A write stores the bytes whose strobe bit is set; entries
    // of 32 bytes become visible with their last 8 bytes, and beats in the order written.
    Access read(uint64_t address, uint8_t* data);
    Access write(uint64_t address, const uint8_t* data, uint64_t strobe);

private:
    struct Region {
        uint64_t size;
        uint8_t* host;  // null: nothing behind it
        uint32_t prot;
        bool owned;
    };
    int insert(uint64_t iova, const Region& region);
    int check(uint64_t iova, uint64_t size, uint32_t prot) const;
    const Region* find(uint64_t address);
    void release(const Region& region);

    std::map<uint64_t, Region> regions_;
    const Region* last_ = nullptr;
    uint64_t last_iova_ = 0;
    uint64_t owned_ = 0;
};
