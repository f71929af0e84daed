/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake librocm_smi64.so.2 as Hygon ships it (API 2.8), with the true ABI: status as uint32, results through pointers.
 * It plays the machine in the file that HAMI_FAKE_HYGON names, and reads the file again when it changes:
 *
 *     health = ok | lost | ecc             in [device N]; at once, and back again with ok
 *     memory_used_mib, utilization, processes = PID:MIB,PID:MIB
 *     unsupported = numa,unique_id         facts that this card answers with RSMI_STATUS_NOT_SUPPORTED
 *
 * What programs take and run on the fake HIP (hami_card.h) comes on top of memory_used_mib, utilization and processes.
 * Signatures and status codes: rocm_smi.h of HYGON/dcu-dcgm.
 */
#include "hami_card_time.h"

#include <stdbool.h>

enum { SUCCESS = 0, INVALID_ARGS = 1, NOT_SUPPORTED = 2, FILE_ERROR = 3, OUT_OF_BOUNDS = 7, INIT_ERROR = 8, INSUFFICIENT_SIZE = 11, UNKNOWN = -1 };
enum { LINK_PCIE = 1, LINK_XGMI = 2, MEMORY_BLOCK = 1, MAX_USERS = 128 };

typedef struct { uint64_t correctable, uncorrectable; } ecc_t;
typedef struct { uint32_t pid, pasid; uint64_t vram, sdma; uint32_t cu_occupancy; } process_t;
_Static_assert(sizeof(ecc_t) == 16 && sizeof(process_t) == 32, "rocm_smi.h");

static int users;

static uint32_t ready(void)
{
    if (users == 0)
        return INIT_ERROR;
    return card_load("HAMI_FAKE_HYGON") == 0 ? SUCCESS : FILE_ERROR;
}

static int is(uint32_t dv, const char *health)
{
    return strcmp(hf_str("device", (int)dv, "health", "ok"), health) == 0;
}

/* The status every call about a card begins with. A lost card's files in sysfs are gone. */
static uint32_t enter(uint32_t dv, const char *fact, const void *out)
{
    uint32_t status = ready();
    if (status != SUCCESS)
        return status;
    if (dv >= (uint32_t)hf_count("device") || out == NULL)
        return INVALID_ARGS;
    if (is(dv, "lost"))
        return FILE_ERROR;
    return strstr(hf_str("device", (int)dv, "unsupported", ""), fact) != NULL ? NOT_SUPPORTED : SUCCESS;
}

static uint32_t number(uint32_t dv, const char *key, uint64_t *to)
{
    uint32_t status = enter(dv, key, to);
    if (status == SUCCESS && hf_str("device", (int)dv, key, NULL) == NULL)
        return NOT_SUPPORTED;
    if (status == SUCCESS)
        *to = hf_u64("device", (int)dv, key, 0);
    return status;
}

#define NUMBER(dv, key, to)                       \
    do {                                          \
        uint64_t value_ = 0;                      \
        if ((to) == NULL)                         \
            return INVALID_ARGS;                  \
        uint32_t status_ = number(dv, key, &value_); \
        if (status_ == SUCCESS)                   \
            *(to) = (__typeof__(*(to)))value_;    \
        return status_;                           \
    } while (0)

static uint32_t text(uint32_t dv, const char *key, char *to, size_t size)
{
    uint32_t status = enter(dv, key, to);
    if (status != SUCCESS)
        return status;
    const char *value = hf_str("device", (int)dv, key, "");
    snprintf(to, size, "%s", value);
    return strlen(value) >= size ? INSUFFICIENT_SIZE : SUCCESS;
}

/* -- library ------------------------------------------------------------------------------------------------ */

HF_EXPORT uint32_t rsmi_init(uint64_t flags)
{
    (void)flags;
    if (card_load("HAMI_FAKE_HYGON") != 0)
        return INIT_ERROR;
    users++;
    return SUCCESS;
}

HF_EXPORT uint32_t rsmi_shut_down(void)
{
    if (users == 0)
        return INIT_ERROR;
    users--;
    return SUCCESS;
}

HF_EXPORT uint32_t rsmi_status_string(uint32_t status, const char **words)
{
    static const char *const known[] = {
        "SUCCESS", "INVALID_ARGS", "NOT_SUPPORTED", "FILE_ERROR", "PERMISSION", "OUT_OF_RESOURCES",
        "INTERNAL_EXCEPTION", "INPUT_OUT_OF_BOUNDS", "INIT_ERROR", "NOT_YET_IMPLEMENTED", "NOT_FOUND", "INSUFFICIENT_SIZE",
    };
    if (words == NULL)
        return INVALID_ARGS;
    *words = status < sizeof known / sizeof *known ? known[status] : "UNKNOWN_ERROR";
    return SUCCESS;
}

HF_EXPORT uint32_t rsmi_num_monitor_devices(uint32_t *count)
{
    if (count == NULL)
        return INVALID_ARGS;
    uint32_t status = ready();
    *count = status == SUCCESS ? (uint32_t)hf_count("device") : 0;
    return status;
}

/* -- identity ----------------------------------------------------------------------------------------------- */

HF_EXPORT uint32_t rsmi_dev_id_get(uint32_t dv, uint16_t *id) { NUMBER(dv, "pci_device_id", id); }
HF_EXPORT uint32_t rsmi_dev_vendor_id_get(uint32_t dv, uint16_t *id) { NUMBER(dv, "pci_vendor_id", id); }
HF_EXPORT uint32_t rsmi_dev_unique_id_get(uint32_t dv, uint64_t *id) { NUMBER(dv, "unique_id", id); }
HF_EXPORT uint32_t rsmi_dev_drm_render_minor_get(uint32_t dv, uint32_t *minor) { NUMBER(dv, "render", minor); }
HF_EXPORT uint32_t rsmi_dev_name_get(uint32_t dv, char *to, size_t size) { return text(dv, "name", to, size); }
HF_EXPORT uint32_t rsmi_dev_serial_number_get(uint32_t dv, char *to, uint32_t size) { return text(dv, "serial", to, size); }

HF_EXPORT uint32_t rsmi_dev_pci_id_get(uint32_t dv, uint64_t *bdf)
{
    unsigned domain = 0, bus = 0, device = 0, function = 0;
    uint32_t status = enter(dv, "pci", bdf);
    if (status != SUCCESS)
        return status;
    sscanf(hf_str("device", (int)dv, "pci", ""), "%x:%x:%x.%x", &domain, &bus, &device, &function);
    *bdf = (uint64_t)domain << 32 | bus << 8 | device << 3 | function;
    return SUCCESS;
}

/* -- amounts and health ------------------------------------------------------------------------------------- */

static uint32_t mib(uint32_t dv, int type, const char *key, uint64_t *bytes)
{
    uint32_t status = type == 0 ? number(dv, key, bytes) : NOT_SUPPORTED; /* 0: VRAM */
    if (status == SUCCESS)
        *bytes <<= 20;
    return status;
}

HF_EXPORT uint32_t rsmi_dev_memory_total_get(uint32_t dv, int type, uint64_t *bytes) { return mib(dv, type, "memory_mib", bytes); }
HF_EXPORT uint32_t rsmi_dev_memory_usage_get(uint32_t dv, int type, uint64_t *bytes)
{
    uint32_t status = mib(dv, type, "memory_used_mib", bytes);
    uint64_t capacity, used;
    if (status != SUCCESS)
        return status;
    card_memory((int)dv, &capacity, &used);
    *bytes += used;
    return SUCCESS;
}

HF_EXPORT uint32_t rsmi_dev_busy_percent_get(uint32_t dv, uint32_t *percent)
{
    uint64_t told = 0;
    uint32_t status = percent == NULL ? INVALID_ARGS : number(dv, "utilization", &told);
    if (status == SUCCESS)
        *percent = (uint32_t)told + card_utilization((int)dv) > 100 ? 100 : (uint32_t)told + card_utilization((int)dv);
    return status;
}

HF_EXPORT uint32_t rsmi_dev_memory_busy_percent_get(uint32_t dv, uint32_t *percent) { NUMBER(dv, "memory_utilization", percent); }

HF_EXPORT uint32_t rsmi_dev_temp_metric_get(uint32_t dv, uint32_t sensor, int metric, int64_t *millicelsius)
{
    if (sensor > 2 || metric != 0)
        return NOT_SUPPORTED;
    NUMBER(dv, "temperature_millicelsius", millicelsius);
}

HF_EXPORT uint32_t rsmi_dev_power_ave_get(uint32_t dv, uint32_t sensor, uint64_t *microwatt)
{
    (void)sensor;
    NUMBER(dv, "power_uw", microwatt);
}

HF_EXPORT uint32_t rsmi_dev_ecc_enabled_get(uint32_t dv, uint64_t *blocks)
{
    uint32_t status = enter(dv, "ecc", blocks);
    if (status == SUCCESS)
        *blocks = MEMORY_BLOCK;
    return status;
}

HF_EXPORT uint32_t rsmi_dev_ecc_count_get(uint32_t dv, int block, ecc_t *count)
{
    uint32_t status = enter(dv, "ecc", count);
    if (status == SUCCESS && block != MEMORY_BLOCK)
        return NOT_SUPPORTED;
    if (status == SUCCESS)
        *count = (ecc_t){.correctable = 0, .uncorrectable = is(dv, "ecc") ? 3 : 0};
    return status;
}

/* -- topology ----------------------------------------------------------------------------------------------- */

static bool xgmi(uint32_t one, uint32_t other)
{
    const char *hive = hf_str("device", (int)one, "xgmi_hive", NULL), *second = hf_str("device", (int)other, "xgmi_hive", NULL);
    return hive != NULL && second != NULL && strcmp(hive, second) == 0;
}

static bool same_numa(uint32_t one, uint32_t other)
{
    return hf_int("device", (int)one, "numa", -1) == hf_int("device", (int)other, "numa", -1);
}

HF_EXPORT uint32_t rsmi_topo_get_numa_node_number(uint32_t dv, uint32_t *node) { NUMBER(dv, "numa", node); }
HF_EXPORT uint32_t rsmi_topo_numa_affinity_get(uint32_t dv, int32_t *node) { NUMBER(dv, "numa", node); }

HF_EXPORT uint32_t rsmi_topo_get_link_type(uint32_t from, uint32_t to, uint64_t *hops, int *type)
{
    uint32_t status = enter(from, "links", hops);
    status = status == SUCCESS ? enter(to, "links", type) : status;
    if (status != SUCCESS)
        return status;
    *type = xgmi(from, to) ? LINK_XGMI : LINK_PCIE;
    *hops = *type == LINK_XGMI ? 1 : same_numa(from, to) ? 2 : 3;
    return SUCCESS;
}

HF_EXPORT uint32_t rsmi_topo_get_link_weight(uint32_t from, uint32_t to, uint64_t *weight)
{
    uint32_t status = enter(from, "links", weight);
    status = status == SUCCESS ? enter(to, "links", weight) : status;
    if (status == SUCCESS)
        *weight = xgmi(from, to) ? 15 : same_numa(from, to) ? 40 : 72;
    return status;
}

HF_EXPORT uint32_t rsmi_is_P2P_accessible(uint32_t from, uint32_t to, bool *accessible)
{
    uint32_t status = enter(from, "links", accessible);
    status = status == SUCCESS ? enter(to, "links", accessible) : status;
    if (status == SUCCESS)
        *accessible = true;
    return status;
}

/* -- processes: fills up to the given count; without an array it counts --------------------------------------- */

HF_EXPORT uint32_t rsmi_compute_process_info_get(process_t *processes, uint32_t *count)
{
    uint32_t status = count == NULL ? INVALID_ARGS : ready();
    if (status != SUCCESS)
        return status;
    uint32_t found = 0;
    for (int dv = 0; dv < hf_count("device"); dv++) {
        char list[HF_VALUE];
        char *rest = NULL;
        snprintf(list, sizeof list, "%s", hf_str("device", dv, "processes", ""));
        for (char *item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest), found++) {
            unsigned pid = 0, used = 0;
            if (sscanf(item, "%u:%u", &pid, &used) == 2 && processes != NULL && found < *count)
                processes[found] = (process_t){.pid = pid, .vram = (uint64_t)used << 20};
        }
        struct card_user users[MAX_USERS];
        unsigned ours = card_users(dv, users, MAX_USERS);
        for (unsigned i = 0; i < ours && i < MAX_USERS; i++, found++)
            if (processes != NULL && found < *count)
                processes[found] = (process_t){.pid = users[i].host_pid, .vram = users[i].bytes};
    }
    status = processes != NULL && found > *count ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return status;
}
