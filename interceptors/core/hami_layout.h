/* SPDX-License-Identifier: Apache-2.0 */
/* made by `python -m hami_interceptor layout` from core/layout.toml; change that instead. */
#ifndef HAMI_LAYOUT_H
#define HAMI_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define HAMI_LAYOUT_VERSION 1
#define HAMI_MAX_DEVICES 16
#define HAMI_MAX_IDENTITIES 8
#define HAMI_MAX_SLOTS 1024
#define HAMI_MAX_EXPORTS 256
#define HAMI_NO_LIMIT UINT64_C(0xFFFFFFFFFFFFFFFF)
#define HAMI_CORE_UNLIMITED 0
#define HAMI_MILLI_PERCENT 100000
#define HAMI_GAIN_ONE 65536
#define HAMI_POLICY_MAGIC UINT64_C(0x314C4F50494D4148)
#define HAMI_CONTROL_MAGIC UINT64_C(0x314C5443494D4148)
#define HAMI_STATE_MAGIC UINT64_C(0x31545453494D4148)

enum hami_slot_state {
    HAMI_SLOT_STATE_FREE = 0,
    HAMI_SLOT_STATE_CLAIMING = 1,
    HAMI_SLOT_STATE_LIVE = 2,
    HAMI_SLOT_STATE_RECLAIMING = 3,
};

enum hami_compute_mode {
    HAMI_COMPUTE_MODE_FIXED = 0,
    HAMI_COMPUTE_MODE_WORK_CONSERVING = 1,
};

enum hami_device_flag {
    HAMI_DEVICE_FLAG_OVERSUBSCRIBE = 1,
    HAMI_DEVICE_FLAG_CHARGE_IMPORTS = 2,
};

enum hami_policy_flag {
    HAMI_POLICY_FLAG_ADVISORY = 1,
};

enum hami_control_flag {
    HAMI_CONTROL_FLAG_SUSPENDED = 1,
};

/* One name that a driver API may call the device by. */
struct hami_identity {
    char kind[16];
    char value[80];
};
_Static_assert(sizeof(struct hami_identity) == 96, "hami_identity has its frozen size");
_Static_assert(offsetof(struct hami_identity, kind) == 0, "identity.kind has its frozen place");
_Static_assert(offsetof(struct hami_identity, value) == 16, "identity.value has its frozen place");

/* What one device of the container may be used for. Its place in the file is its index everywhere, for as long as the container lives. */
struct hami_policy_device {
    char vendor[16];
    struct hami_identity identities[8];
    uint64_t memory_bytes; /* the most that may be held; NO_LIMIT: no limit */
    uint64_t capacity_bytes; /* what the device has in all; 0: not known */
    uint64_t virtual_bytes; /* with OVERSUBSCRIBE: the most managed memory; else 0 */
    uint64_t context_bytes; /* what a context costs on this device and driver; 0: to be measured */
    uint32_t core_milli; /* thousandths of a percent of the device's time; CORE_UNLIMITED: no limit */
    uint32_t compute_mode; /* see compute_mode */
    uint32_t weight; /* share of lent time relative to others; 0 reads as 1 */
    uint32_t priority; /* 0 is the highest */
    uint32_t flags; /* see device_flag */
    uint32_t burst_us; /* how far ahead of its share the container may run; 0: the library's default */
    unsigned char reserved[64];
};
_Static_assert(sizeof(struct hami_policy_device) == 904, "hami_policy_device has its frozen size");
_Static_assert(offsetof(struct hami_policy_device, vendor) == 0, "policy_device.vendor has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, identities) == 16, "policy_device.identities has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, memory_bytes) == 784, "policy_device.memory_bytes has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, capacity_bytes) == 792, "policy_device.capacity_bytes has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, virtual_bytes) == 800, "policy_device.virtual_bytes has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, context_bytes) == 808, "policy_device.context_bytes has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, core_milli) == 816, "policy_device.core_milli has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, compute_mode) == 820, "policy_device.compute_mode has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, weight) == 824, "policy_device.weight has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, priority) == 828, "policy_device.priority has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, flags) == 832, "policy_device.flags has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, burst_us) == 836, "policy_device.burst_us has its frozen place");
_Static_assert(offsetof(struct hami_policy_device, reserved) == 840, "policy_device.reserved has its frozen place");

/* The beginning of policy.bin; `device_count` records of `policy_device` follow. */
struct hami_policy_header {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t header_size;
    uint32_t record_size;
    uint32_t device_count;
    uint64_t generation; /* counts up with every change; the same number stands in control.bin once it is in effect */
    uint64_t checksum; /* FNV-1a (64 bit) of the whole file with this field zero */
    uint32_t flags; /* see policy_flag */
    uint32_t reserved_word;
    char container[192]; /* <owner uid>/<container>, for messages */
    unsigned char reserved[16];
};
_Static_assert(sizeof(struct hami_policy_header) == 256, "hami_policy_header has its frozen size");
_Static_assert(offsetof(struct hami_policy_header, magic) == 0, "policy_header.magic has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, layout_version) == 8, "policy_header.layout_version has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, header_size) == 12, "policy_header.header_size has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, record_size) == 16, "policy_header.record_size has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, device_count) == 20, "policy_header.device_count has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, generation) == 24, "policy_header.generation has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, checksum) == 32, "policy_header.checksum has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, flags) == 40, "policy_header.flags has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, reserved_word) == 44, "policy_header.reserved_word has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, container) == 48, "policy_header.container has its frozen place");
_Static_assert(offsetof(struct hami_policy_header, reserved) == 240, "policy_header.reserved has its frozen place");

/* The agent's word on one device. */
struct hami_control_device {
    _Atomic uint32_t effective_milli; /* the share to hold now (work-conserving lends, priority takes); 0: the policy's own */
    _Atomic uint32_t gain; /* outer correction of the measured cost, Q16.16, held within [0.5, 2]; 0 reads as GAIN_ONE */
    _Atomic uint32_t flags; /* see control_flag */
    unsigned char reserved[52];
};
_Static_assert(sizeof(struct hami_control_device) == 64, "hami_control_device has its frozen size");
_Static_assert(offsetof(struct hami_control_device, effective_milli) == 0, "control_device.effective_milli has its frozen place");
_Static_assert(offsetof(struct hami_control_device, gain) == 4, "control_device.gain has its frozen place");
_Static_assert(offsetof(struct hami_control_device, flags) == 8, "control_device.flags has its frozen place");
_Static_assert(offsetof(struct hami_control_device, reserved) == 12, "control_device.reserved has its frozen place");

/* All of control.bin. */
struct hami_control_file {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t size;
    _Atomic uint32_t generation; /* low half of the policy's generation; a futex: it changes with every change of policy or of suspension */
    _Atomic uint32_t flags; /* see control_flag; for all devices of the container */
    _Atomic uint64_t heartbeat_ns; /* CLOCK_MONOTONIC of the agent's last look; older than 10 s: gain and effective_milli are not used */
    unsigned char reserved[96];
    struct hami_control_device devices[16];
};
_Static_assert(sizeof(struct hami_control_file) == 1152, "hami_control_file has its frozen size");
_Static_assert(offsetof(struct hami_control_file, magic) == 0, "control_file.magic has its frozen place");
_Static_assert(offsetof(struct hami_control_file, layout_version) == 8, "control_file.layout_version has its frozen place");
_Static_assert(offsetof(struct hami_control_file, size) == 12, "control_file.size has its frozen place");
_Static_assert(offsetof(struct hami_control_file, generation) == 16, "control_file.generation has its frozen place");
_Static_assert(offsetof(struct hami_control_file, flags) == 20, "control_file.flags has its frozen place");
_Static_assert(offsetof(struct hami_control_file, heartbeat_ns) == 24, "control_file.heartbeat_ns has its frozen place");
_Static_assert(offsetof(struct hami_control_file, reserved) == 32, "control_file.reserved has its frozen place");
_Static_assert(offsetof(struct hami_control_file, devices) == 128, "control_file.devices has its frozen place");

/* One device's books: a cache line pair of its own, so that devices do not disturb each other. */
struct hami_state_device {
    _Atomic uint64_t used_bytes; /* sum over the slots; a cache that whoever finds the mutex's owner dead computes anew. Written under the mutex */
    _Atomic uint64_t high_water_bytes;
    _Atomic uint64_t virtual_used_bytes; /* managed memory under OVERSUBSCRIBE */
    _Atomic uint64_t tat_ns; /* GCRA's theoretical arrival time, CLOCK_MONOTONIC */
    _Atomic uint64_t context_bytes; /* what the first context was measured to cost; 0: not measured */
    _Atomic uint64_t refusals; /* allocations refused since the container began */
    _Atomic uint64_t launches; /* launches charged (counted in batches) */
    _Atomic uint64_t waited_ns; /* time that launches were held back */
    unsigned char reserved[64];
};
_Static_assert(sizeof(struct hami_state_device) == 128, "hami_state_device has its frozen size");
_Static_assert(offsetof(struct hami_state_device, used_bytes) == 0, "state_device.used_bytes has its frozen place");
_Static_assert(offsetof(struct hami_state_device, high_water_bytes) == 8, "state_device.high_water_bytes has its frozen place");
_Static_assert(offsetof(struct hami_state_device, virtual_used_bytes) == 16, "state_device.virtual_used_bytes has its frozen place");
_Static_assert(offsetof(struct hami_state_device, tat_ns) == 24, "state_device.tat_ns has its frozen place");
_Static_assert(offsetof(struct hami_state_device, context_bytes) == 32, "state_device.context_bytes has its frozen place");
_Static_assert(offsetof(struct hami_state_device, refusals) == 40, "state_device.refusals has its frozen place");
_Static_assert(offsetof(struct hami_state_device, launches) == 48, "state_device.launches has its frozen place");
_Static_assert(offsetof(struct hami_state_device, waited_ns) == 56, "state_device.waited_ns has its frozen place");
_Static_assert(offsetof(struct hami_state_device, reserved) == 64, "state_device.reserved has its frozen place");

/* What one process holds on one device. */
struct hami_slot_device {
    _Atomic uint64_t held_bytes; /* reserved and committed; written under the mutex */
    _Atomic uint64_t virtual_bytes;
    _Atomic uint64_t busy_ns; /* device time charged */
    _Atomic uint64_t context_bytes; /* the part of held_bytes that is contexts */
};
_Static_assert(sizeof(struct hami_slot_device) == 32, "hami_slot_device has its frozen size");
_Static_assert(offsetof(struct hami_slot_device, held_bytes) == 0, "slot_device.held_bytes has its frozen place");
_Static_assert(offsetof(struct hami_slot_device, virtual_bytes) == 8, "slot_device.virtual_bytes has its frozen place");
_Static_assert(offsetof(struct hami_slot_device, busy_ns) == 16, "slot_device.busy_ns has its frozen place");
_Static_assert(offsetof(struct hami_slot_device, context_bytes) == 24, "slot_device.context_bytes has its frozen place");

/* One process. It never moves. */
struct hami_slot {
    _Atomic uint64_t state; /* low 32 bits: see slot_state; high 32 bits: counts up at each claim */
    _Atomic uint64_t pid; /* in the container's PID namespace */
    _Atomic uint64_t start_ticks; /* field 22 of /proc/<pid>/stat, against reuse of the PID */
    _Atomic uint64_t joined_ns; /* CLOCK_MONOTONIC */
    _Atomic uint64_t unknown_symbols; /* names that a resolver handed out and the table does not know */
    _Atomic uint64_t private_tables; /* accesses to a driver's export tables */
    unsigned char reserved[16];
    struct hami_slot_device devices[16];
};
_Static_assert(sizeof(struct hami_slot) == 576, "hami_slot has its frozen size");
_Static_assert(offsetof(struct hami_slot, state) == 0, "slot.state has its frozen place");
_Static_assert(offsetof(struct hami_slot, pid) == 8, "slot.pid has its frozen place");
_Static_assert(offsetof(struct hami_slot, start_ticks) == 16, "slot.start_ticks has its frozen place");
_Static_assert(offsetof(struct hami_slot, joined_ns) == 24, "slot.joined_ns has its frozen place");
_Static_assert(offsetof(struct hami_slot, unknown_symbols) == 32, "slot.unknown_symbols has its frozen place");
_Static_assert(offsetof(struct hami_slot, private_tables) == 40, "slot.private_tables has its frozen place");
_Static_assert(offsetof(struct hami_slot, reserved) == 48, "slot.reserved has its frozen place");
_Static_assert(offsetof(struct hami_slot, devices) == 64, "slot.devices has its frozen place");

/* A memory handle that a process of this container has exported: its importer in the same container is not charged again. */
struct hami_export {
    _Atomic uint64_t handle_hash; /* FNV-1a of the handle's bytes; 0: free */
    _Atomic uint64_t bytes;
};
_Static_assert(sizeof(struct hami_export) == 16, "hami_export has its frozen size");
_Static_assert(offsetof(struct hami_export, handle_hash) == 0, "export.handle_hash has its frozen place");
_Static_assert(offsetof(struct hami_export, bytes) == 8, "export.bytes has its frozen place");

/* All of state.bin. */
struct hami_state_file {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t size;
    _Atomic uint32_t ready; /* 1 once the first process has initialised the mutex (under an record lock on byte 0) */
    uint32_t reserved_word;
    _Atomic uint64_t epoch; /* counts reclaims and recounts */
    _Atomic uint64_t next_export;
    unsigned char reserved[24];
    unsigned char mutex[64]; /* pthread_mutex_t, robust and process-shared */
    struct hami_state_device devices[16];
    struct hami_export exports[256];
    struct hami_slot slots[1024];
};
_Static_assert(sizeof(struct hami_state_file) == 596096, "hami_state_file has its frozen size");
_Static_assert(offsetof(struct hami_state_file, magic) == 0, "state_file.magic has its frozen place");
_Static_assert(offsetof(struct hami_state_file, layout_version) == 8, "state_file.layout_version has its frozen place");
_Static_assert(offsetof(struct hami_state_file, size) == 12, "state_file.size has its frozen place");
_Static_assert(offsetof(struct hami_state_file, ready) == 16, "state_file.ready has its frozen place");
_Static_assert(offsetof(struct hami_state_file, reserved_word) == 20, "state_file.reserved_word has its frozen place");
_Static_assert(offsetof(struct hami_state_file, epoch) == 24, "state_file.epoch has its frozen place");
_Static_assert(offsetof(struct hami_state_file, next_export) == 32, "state_file.next_export has its frozen place");
_Static_assert(offsetof(struct hami_state_file, reserved) == 40, "state_file.reserved has its frozen place");
_Static_assert(offsetof(struct hami_state_file, mutex) == 64, "state_file.mutex has its frozen place");
_Static_assert(offsetof(struct hami_state_file, devices) == 128, "state_file.devices has its frozen place");
_Static_assert(offsetof(struct hami_state_file, exports) == 2176, "state_file.exports has its frozen place");
_Static_assert(offsetof(struct hami_state_file, slots) == 6272, "state_file.slots has its frozen place");

#endif
