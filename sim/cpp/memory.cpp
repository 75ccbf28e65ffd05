#include "memory.hpp"

#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shell.hpp"

namespace {

// A client may truncate a file that it has shared; touching what is gone raises SIGBUS. The
// access in progress then ends as a bus error of the simulated bus, not of this process.
thread_local sigjmp_buf resume;
thread_local volatile sig_atomic_t guarded = 0;
struct sigaction previous;

void on_bus_error(int, siginfo_t*, void*) {
    if (guarded) {
        guarded = 0;
        siglongjmp(resume, 1);
    }
    sigaction(SIGBUS, &previous, nullptr);  // not ours: happens again under the old handler
}

void install_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGBUS, &action, &previous);
    });
}

void barrier() { asm volatile("" ::: "memory"); }

void store_beat(uint8_t* to, const uint8_t* from, uint64_t strobe) {
    for (unsigned at = 0; at < Memory::beat; at += 8) {
        const uint8_t mask = strobe >> at & 0xff;
        if (mask == 0xff) {
            uint64_t word;
            std::memcpy(&word, from + at, 8);
            auto* target = reinterpret_cast<uint64_t*>(to + at);
            // The last word of a ring entry carries its phase bit: everything before it must
            // be visible to whoever sees it.
            if (at % 32 == 24)
                __atomic_store_n(target, word, __ATOMIC_RELEASE);
            else
                __atomic_store_n(target, word, __ATOMIC_RELAXED);
        } else if (mask) {
            for (unsigned i = 0; i < 8; ++i)
                if (mask >> i & 1) __atomic_store_n(to + at + i, from[at + i], __ATOMIC_RELEASE);
        }
    }
}

}  // namespace

Memory::Memory() { install_handler(); }

Memory::~Memory() { unmap_all(); }

int Memory::check(uint64_t iova, uint64_t size, uint32_t prot) const {
    if (!size || size % beat || iova % beat || prot & ~uint32_t(SHELL_READ | SHELL_WRITE)) return -EINVAL;
    if (iova + size - 1 < iova) return -EINVAL;
    const auto after = regions_.upper_bound(iova + size - 1);
    if (after != regions_.begin()) {
        const auto before = std::prev(after);
        if (before->first + before->second.size - 1 >= iova) return -EEXIST;
    }
    return 0;
}

int Memory::insert(uint64_t iova, const Region& region) {
    regions_.emplace(iova, region);
    last_ = nullptr;
    return 0;
}

int Memory::map_file(uint64_t iova, uint64_t size, int fd, uint64_t offset, uint32_t prot) {
    if (const int error = check(iova, size, prot)) return error;
    if (fd < 0) return insert(iova, {size, nullptr, prot, false});
    struct stat status;
    if (fstat(fd, &status)) return -errno;
    if (S_ISREG(status.st_mode)) {
        const auto length = uint64_t(status.st_size);
        if (offset > length || size > length - offset) return -EINVAL;
    }
    const int how = (prot & SHELL_READ ? PROT_READ : 0) | (prot & SHELL_WRITE ? PROT_READ | PROT_WRITE : 0);
    void* host = mmap(nullptr, size, how, MAP_SHARED, fd, off_t(offset));
    if (host == MAP_FAILED) return -errno;
    owned_ += size;
    return insert(iova, {size, static_cast<uint8_t*>(host), prot, true});
}

int Memory::map_pointer(uint64_t iova, uint64_t size, void* host, uint32_t prot) {
    if (!host || reinterpret_cast<uintptr_t>(host) % 8) return -EINVAL;
    if (const int error = check(iova, size, prot)) return error;
    return insert(iova, {size, static_cast<uint8_t*>(host), prot, false});
}

void Memory::release(const Region& region) {
    if (!region.owned) return;
    munmap(region.host, region.size);
    owned_ -= region.size;
}

int Memory::unmap(uint64_t iova, uint64_t size, uint64_t* unmapped) {
    const uint64_t last = iova + size - 1;
    if (!size || last < iova) return -EINVAL;
    const auto begin = regions_.lower_bound(iova), end = regions_.upper_bound(last);
    const auto cut = [&](std::map<uint64_t, Region>::iterator at, uint64_t address) {
        return at != regions_.begin() && std::prev(at)->first + std::prev(at)->second.size - 1 >= address;
    };
    if (cut(begin, iova) || (last + 1 && cut(end, last + 1))) return -EINVAL;
    *unmapped = 0;
    for (auto at = begin; at != end; ++at) {
        *unmapped += at->second.size;
        release(at->second);
    }
    regions_.erase(begin, end);
    last_ = nullptr;
    return 0;
}

void Memory::unmap_all() {
    for (const auto& entry : regions_) release(entry.second);
    regions_.clear();
    last_ = nullptr;
}

const Memory::Region* Memory::find(uint64_t address) {
    if (last_ && address - last_iova_ < last_->size) return last_;
    auto after = regions_.upper_bound(address);
    if (after == regions_.begin()) return nullptr;
    --after;
    if (address - after->first >= after->second.size) return nullptr;
    last_ = &after->second;
    last_iova_ = after->first;
    return last_;
}

Memory::Access Memory::read(uint64_t address, uint8_t* data) {
    const Region* region = find(address);
    if (!region || !region->host) return Access::unmapped;
    if (!(region->prot & SHELL_READ)) return Access::refused;
    const uint8_t* from = region->host + (address - last_iova_);
    if (sigsetjmp(resume, 0)) return Access::fault;
    guarded = 1;
    barrier();
    std::memcpy(data, from, beat);
    barrier();
    guarded = 0;
    return Access::done;
}

Memory::Access Memory::write(uint64_t address, const uint8_t* data, uint64_t strobe) {
    const Region* region = find(address);
    if (!region || !region->host) return Access::unmapped;
    if (!(region->prot & SHELL_WRITE)) return Access::refused;
    uint8_t* to = region->host + (address - last_iova_);
    if (sigsetjmp(resume, 0)) return Access::fault;
    guarded = 1;
    barrier();
    store_beat(to, data, strobe);
    barrier();
    guarded = 0;
    return Access::done;
}
