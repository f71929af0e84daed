/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libdcmi.so with DCMI's true ABI: chips addressed by (card, chip), three number spaces, negative error codes.
 * It plays the machine in the file that HAMI_FAKE_ASCEND names, and reads the file again when it changes:
 *
 *     health = ok | general | important | critical | lost | gone     in [device N]; at once, and back again with ok
 *              lost: still listed, but every call about it fails; gone: not listed any more
 *     error_codes = 0x80E01801,0x80CD8008
 *     memory_used_mib, utilization, processes = PID:MIB,PID:MIB
 *     unsupported = elabel,pcie,cpus,utilization     facts that this chip answers with -8255
 *
 * vNPUs live in the memory of the process that made them.
 * Layouts and numbers: the published header dcmi_interface_api.h and DCMI's reference; sizes are asserted below.
 */
#include "hami_card_time.h"

enum {
    OK = 0, INVALID_PARAMETER = -8001, NOT_INITIALISED = -8005, INVALID_DEVICE = -8007, NOT_EXIST = -8008, NOT_READY = -8012, OCCUPIED = -8020,
    UNSUPPORTED = -8255
};
enum { MAX_USERS = 32, /* what dcmi_get_device_resource_info has room for */ MAX_CHIPS = 64, MAX_VNPUS = 16, VDEV_MANAGEMENT = 52, AUTOMATIC = -1, ALL_VDEVICES = 65535 };
enum { UTIL_DDR = 1, UTIL_AICORE = 2, UTIL_HBM = 6, UTIL_NPU = 13 };

typedef unsigned int uint;
typedef struct { unsigned char chip_type[32], chip_name[32], chip_ver[32]; uint aicore_cnt; } chip_t;
typedef struct { unsigned char chip_type[32], chip_name[32], chip_ver[32]; uint aicore_cnt; unsigned char npu_name[32]; } chip_v2_t;
typedef struct { uint soc_die[5]; } die_t;
typedef struct { char product_name[256], model[256], manufacturer[256], manufacturer_date[256], serial_number[256]; } elabel_t;
typedef struct { uint vendor, subvendor, device, subdevice; int domain; uint bus, slot, function; unsigned char reserve[32]; } pcie_t;
typedef struct { unsigned long long size_mb; uint freq; unsigned long long used_mb; int temp; uint bandwidth; } hbm_t;
typedef struct {
    unsigned long long size_mb, available_mb; uint freq; unsigned long hugepagesize, total, free; uint utiliza; unsigned char reserve[60];
} ddr_t;
typedef struct { uint board_id, pcb_id, bom_id, slot_id; } board_t;
typedef struct { int pid; unsigned long used_bytes; } process_t;
typedef struct { uint vdev_id, vfg_id; char template_name[32]; unsigned char reserved[64]; } create_t;
typedef struct { uint vdev_id, pcie_bus, pcie_device, pcie_func, vfg_id; unsigned char reserved[32]; } created_t;
typedef struct { unsigned long long token, token_max, task_timeout; uint vfg_id; unsigned char vip_mode, reserved[31]; } base_t;
typedef struct {
    float aic, aiv;
    unsigned short dsa, rtsq, acsq, cdqm, c_core, ffts, sdma, pcie_dma;
    unsigned long long memory_mb;
    uint event_id, notify_id, stream_id, model_id;
    unsigned short schedule_aicpu, host_ctrl_cpu, host_aicpu, device_aicpu, ctrl_cpu_slot;
    unsigned char reserved[32];
} computing_t;
typedef struct { float jpegd, jpege, vpc, vdec, pngd, venc; unsigned char reserved[32]; } media_t;
typedef struct { char name[16]; uint status, used, vfid, vfg_id; unsigned long long container; base_t base; computing_t computing; media_t media; } info_t;
typedef struct { uint vdev_id; info_t info; } vdev_t;
typedef struct { uint vdev_num, vdev_id[32], vfg_num, vfg_bitmap; base_t base; computing_t computing; media_t media; } totals_t;
typedef struct { uint vfg_num, vfg_bitmap; base_t base; computing_t computing; media_t media; } free_t;

_Static_assert(sizeof(pcie_t) == 64 && sizeof(create_t) == 104 && sizeof(created_t) == 52, "DCMI's own sizes");
_Static_assert(sizeof(chip_t) == 100 && sizeof(hbm_t) == 32 && sizeof(elabel_t) == 1280, "DCMI's own sizes");

static int initialised;
static struct { uint id; int template; } vnpus[MAX_CHIPS][MAX_VNPUS];

static int64_t number(int chip, const char *key, int64_t otherwise) { return hf_int("device", chip, key, otherwise); }
static int health_is(int chip, const char *state) { return strcmp(hf_str("device", chip, "health", "ok"), state) == 0; }
static int unsupported(int chip, const char *fact) { return strstr(hf_str("device", chip, "unsupported", ""), fact) != NULL; }
static void text(void *to, size_t size, const char *from) { snprintf(to, size, "%s", from); }

static int ready(void)
{
    if (!initialised)
        return NOT_INITIALISED;
    return card_load("HAMI_FAKE_ASCEND") == 0 ? OK : NOT_EXIST;
}

/* The index of the chip in the machine file, lost or not; -8008 when there is none at this address. */
static int find(int card, int device)
{
    if (ready() != OK)
        return ready();
    for (int chip = 0; chip < hf_count("device"); chip++)
        if (number(chip, "card", chip) == card && number(chip, "chip", 0) == device && !health_is(chip, "gone"))
            return chip;
    return INVALID_DEVICE;
}

/* As `find`, for calls that a lost chip cannot answer. */
static int alive(int card, int device)
{
    int chip = find(card, device);
    return chip >= 0 && health_is(chip, "lost") ? NOT_EXIST : chip;
}

HF_EXPORT int dcmi_init(void)
{
    if (card_load("HAMI_FAKE_ASCEND") != 0)
        return NOT_INITIALISED;
    initialised = 1;
    return OK;
}

HF_EXPORT int dcmi_get_dcmi_version(char *version, uint length) { text(version, length, "25.5.0"); return ready(); }

HF_EXPORT int dcmi_get_driver_version(char *version, uint length)
{
    int state = ready();
    if (state == OK)
        text(version, length, hf_str("machine", -1, "driver", "25.5.0"));
    return state;
}

HF_EXPORT int dcmi_get_card_list(int *count, int *cards, int length)
{
    int state = ready();
    *count = 0;
    for (int chip = 0; state == OK && chip < hf_count("device"); chip++) {
        int card = (int)number(chip, "card", chip), known = health_is(chip, "gone");
        for (int i = 0; i < *count; i++)
            known |= cards[i] == card;
        if (!known && *count < length)
            cards[(*count)++] = card;
    }
    return state;
}

HF_EXPORT int dcmi_get_card_num_list(int *count, int *cards, int length) { return dcmi_get_card_list(count, cards, length); }

HF_EXPORT int dcmi_get_device_num_in_card(int card, int *count)
{
    int state = ready();
    *count = 0;
    for (int chip = 0; state == OK && chip < hf_count("device"); chip++)
        if (number(chip, "card", chip) == card)
            (*count)++;
    return state != OK ? state : *count > 0 ? OK : INVALID_PARAMETER;
}

HF_EXPORT int dcmi_get_device_id_in_card(int card, int *id_max, int *mcu_id, int *cpu_id)
{
    *mcu_id = *cpu_id = -1;
    return dcmi_get_device_num_in_card(card, id_max);
}

HF_EXPORT int dcmi_get_device_type(int card, int device, int *type) { *type = 0; int chip = alive(card, device); return chip < 0 ? chip : OK; }

HF_EXPORT int dcmi_get_device_logic_id(int *out, int card, int device)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    *out = (int)number(chip, "logic", chip);
    return OK;
}

static int by_number(const char *key, uint value)
{
    int state = ready();
    for (int chip = 0; state == OK && chip < hf_count("device"); chip++)
        if (number(chip, key, chip) == (int64_t)value)
            return chip;
    return state != OK ? state : INVALID_DEVICE;
}

HF_EXPORT int dcmi_get_device_phyid_from_logicid(uint logic, uint *phy)
{
    int chip = by_number("logic", logic);
    if (chip >= 0)
        *phy = (uint)number(chip, "phy", chip);
    return chip < 0 ? chip : OK;
}

HF_EXPORT int dcmi_get_device_logicid_from_phyid(uint phy, uint *logic)
{
    int chip = by_number("phy", phy);
    if (chip >= 0)
        *logic = (uint)number(chip, "logic", chip);
    return chip < 0 ? chip : OK;
}

static int address_of(int chip, int *card, int *device)
{
    if (chip < 0)
        return chip;
    *card = (int)number(chip, "card", chip);
    *device = (int)number(chip, "chip", 0);
    return OK;
}

HF_EXPORT int dcmi_get_card_id_device_id_from_logicid(int *card, int *device, uint logic) { return address_of(by_number("logic", logic), card, device); }
HF_EXPORT int dcmi_get_card_id_device_id_from_phyid(int *card, int *device, uint phy) { return address_of(by_number("phy", phy), card, device); }

static int chip_info(int card, int device, chip_t *info)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    text(info->chip_type, 32, "Ascend");
    text(info->chip_name, 32, hf_str("device", chip, "name", "910B3"));
    text(info->chip_ver, 32, "V1");
    info->aicore_cnt = (uint)number(chip, "aicores", 20);
    return OK;
}

HF_EXPORT int dcmi_get_device_chip_info(int card, int device, chip_t *info) { return chip_info(card, device, info); }

HF_EXPORT int dcmi_get_device_chip_info_v2(int card, int device, chip_v2_t *info)
{
    text(info->npu_name, 32, "npu");
    return chip_info(card, device, (chip_t *)info);
}

HF_EXPORT int dcmi_get_device_die_v2(int card, int device, int type, die_t *die)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    if (type != 0 && type != 1)
        return INVALID_PARAMETER;
    uint *word = die->soc_die;
    if (sscanf(hf_str("device", chip, "vdie", ""), "%x-%x-%x-%x-%x", &word[0], &word[1], &word[2], &word[3], &word[4]) != 5)
        return UNSUPPORTED;
    word[4] ^= type == 0 ? 0xFFFFu : 0u; /* the NDIE is another number than the VDIE */
    return OK;
}

HF_EXPORT int dcmi_get_device_elabel_info(int card, int device, elabel_t *elabel)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    if (unsupported(chip, "elabel"))
        return UNSUPPORTED;
    text(elabel->product_name, 256, hf_str("machine", -1, "product", "Atlas"));
    text(elabel->model, 256, hf_str("device", chip, "board", "NA"));
    text(elabel->manufacturer, 256, "Huawei");
    text(elabel->manufacturer_date, 256, "2024-05-17");
    text(elabel->serial_number, 256, hf_str("device", chip, "serial", ""));
    return OK;
}

HF_EXPORT int dcmi_get_device_pcie_info_v2(int card, int device, pcie_t *pcie)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    memset(pcie, 0, sizeof *pcie);
    pcie->vendor = 0x19e5;
    pcie->device = (uint)number(chip, "pci_device", 0xd802);
    if (unsupported(chip, "pcie") ||
        sscanf(hf_str("device", chip, "pci", ""), "%x:%x:%x.%x", (uint *)&pcie->domain, &pcie->bus, &pcie->slot, &pcie->function) != 4)
        return UNSUPPORTED;
    return OK;
}

HF_EXPORT int dcmi_get_device_board_info(int card, int device, board_t *board)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    *board = (board_t){.board_id = (uint)number(chip, "board_id", 0x33), .slot_id = (uint)card};
    return OK;
}

/* What the machine file says is used, and what programs have taken on the fake runtime. */
static uint64_t used_mib(int chip)
{
    uint64_t capacity, used;
    card_memory(chip, &capacity, &used);
    return hf_u64("device", chip, "memory_used_mib", 0) + (used >> 20);
}

HF_EXPORT int dcmi_get_device_hbm_info(int card, int device, hbm_t *hbm)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    if (number(chip, "hbm_mib", 0) == 0)
        return UNSUPPORTED;
    *hbm = (hbm_t){.size_mb = hf_u64("device", chip, "hbm_mib", 0), .freq = 1600, .used_mb = used_mib(chip), .temp = 45};
    return OK;
}

HF_EXPORT int dcmi_get_device_memory_info_v3(int card, int device, ddr_t *ddr)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    uint64_t size = hf_u64("device", chip, "ddr_mib", 0);
    if (size == 0)
        return UNSUPPORTED;
    *ddr = (ddr_t){.size_mb = size, .available_mb = size - used_mib(chip), .freq = 1600, .hugepagesize = 2048};
    return OK;
}

HF_EXPORT int dcmi_get_device_utilization_rate(int card, int device, int type, uint *rate)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    if (unsupported(chip, "utilization"))
        return UNSUPPORTED;
    if (type < UTIL_DDR || type > 14)
        return INVALID_PARAMETER;
    *rate = type == UTIL_AICORE || type == UTIL_NPU ? (uint)number(chip, "utilization", 0) + card_utilization(chip) : 0;
    return OK;
}

HF_EXPORT int dcmi_get_device_temperature(int card, int device, int *celsius)
{
    int chip = alive(card, device);
    *celsius = chip < 0 ? 0 : (int)number(chip, "temperature", 45);
    return chip < 0 ? chip : OK;
}

/* In tenths of a watt; the second die of an A3 module has no sensor. */
HF_EXPORT int dcmi_get_device_power_info(int card, int device, int *power)
{
    int chip = alive(card, device);
    *power = chip < 0 ? 0 : (int)number(chip, "power", -1);
    return chip < 0 ? chip : *power < 0 ? UNSUPPORTED : OK;
}

HF_EXPORT int dcmi_get_device_health(int card, int device, uint *health)
{
    static const char *states[] = {"ok", "general", "important", "critical"};
    int chip = find(card, device);
    if (chip < 0)
        return chip;
    *health = 0xFFFFFFFFu;
    for (uint state = 0; state < 4; state++)
        if (health_is(chip, states[state]))
            *health = state;
    return OK;
}

HF_EXPORT int dcmi_get_device_errorcode_v2(int card, int device, int *count, uint *codes, uint length)
{
    int chip = alive(card, device);
    *count = 0;
    if (chip < 0)
        return chip;
    for (const char *at = hf_str("device", chip, "error_codes", ""); *at != '\0' && (uint)*count < length; at += strcspn(at, ","), at += *at == ',')
        codes[(*count)++] = (uint)strtoul(at, NULL, 16);
    return OK;
}

HF_EXPORT int dcmi_get_device_network_health(int card, int device, int *result) { *result = 0; int chip = alive(card, device); return chip < 0 ? chip : OK; }

HF_EXPORT int dcmi_get_device_resource_info(int card, int device, process_t *processes, int *count)
{
    int chip = alive(card, device);
    *count = 0;
    if (chip < 0)
        return chip;
    for (const char *at = hf_str("device", chip, "processes", ""); *at != '\0' && *count < MAX_USERS; at += strcspn(at, ","), at += *at == ',') {
        unsigned long mib = 0;
        if (sscanf(at, "%d:%lu", &processes[*count].pid, &mib) == 2)
            processes[(*count)++].used_bytes = mib << 20;
    }
    struct card_user users[MAX_USERS];
    unsigned ours = card_users(chip, users, MAX_USERS);
    for (unsigned i = 0; i < ours && i < MAX_USERS && *count < MAX_USERS; i++)
        processes[(*count)++] = (process_t){.pid = (int)users[i].host_pid, .used_bytes = users[i].bytes};
    return OK;
}

HF_EXPORT int dcmi_get_affinity_cpu_info_by_device_id(int card, int device, char *cpus, int *length)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    if (unsupported(chip, "cpus"))
        return UNSUPPORTED;
    text(cpus, (size_t)*length, hf_str("device", chip, "cpus", ""));
    *length = (int)strlen(cpus);
    return OK;
}

/* Two chips of a card are joined by `same_card`, those of one ring (all chips, where no rings are named) by `same_ring`, others by `elsewhere`. */
HF_EXPORT int dcmi_get_topo_info_by_device_id(int card, int device, int other_card, int other_device, int *topology)
{
    int chip = alive(card, device), other = alive(other_card, other_device);
    if (chip < 0 || other < 0)
        return chip < 0 ? chip : other;
    if (chip == other)
        *topology = 0;
    else if (card == other_card)
        *topology = (int)hf_int("machine", -1, "same_card", 5);
    else if (number(chip, "ring", 0) == number(other, "ring", 0))
        *topology = (int)hf_int("machine", -1, "same_ring", 3);
    else
        *topology = (int)hf_int("machine", -1, "elsewhere", 1);
    return OK;
}

/* -- vNPUs -------------------------------------------------------------------------------------------------------- */

static int template_named(const char *name)
{
    for (int i = 0; i < hf_count("template"); i++)
        if (strcmp(hf_str("template", i, "name", ""), name) == 0)
            return i;
    return -1;
}

static computing_t left(int chip)
{
    computing_t sum = {.aic = (float)number(chip, "aicores", 20), .device_aicpu = (unsigned short)number(chip, "aicpus", 0)};
    sum.memory_mb = (unsigned long long)(number(chip, "hbm_mib", 0) + number(chip, "ddr_mib", 0));
    for (int i = 0; i < MAX_VNPUS; i++)
        if (vnpus[chip][i].id != 0) {
            sum.aic -= (float)hf_int("template", vnpus[chip][i].template, "aicores", 0);
            sum.device_aicpu -= (unsigned short)hf_int("template", vnpus[chip][i].template, "aicpus", 0);
            sum.memory_mb -= hf_u64("template", vnpus[chip][i].template, "memory_mib", 0);
        }
    return sum;
}

HF_EXPORT int dcmi_create_vdevice(int card, int device, create_t *wanted, created_t *made)
{
    int chip = alive(card, device);
    int template = chip < 0 ? -1 : template_named(wanted->template_name);
    if (chip < 0 || template < 0)
        return chip < 0 ? chip : INVALID_PARAMETER;
    computing_t room = left(chip);
    if (room.aic < (float)hf_int("template", template, "aicores", 0) || room.device_aicpu < hf_int("template", template, "aicpus", 0) ||
        room.memory_mb < hf_u64("template", template, "memory_mib", 0))
        return OCCUPIED;
    uint first = (uint)number(chip, "phy", chip) * 16 + 100;
    for (uint i = 0; i < MAX_VNPUS; i++)
        if (vnpus[chip][i].id == 0 && (wanted->vdev_id == (uint)AUTOMATIC || wanted->vdev_id == first + i)) {
            vnpus[chip][i].id = first + i;
            vnpus[chip][i].template = template;
            *made = (created_t){.vdev_id = first + i};
            return OK;
        }
    return OCCUPIED;
}

HF_EXPORT int dcmi_set_destroy_vdevice(int card, int device, uint id)
{
    int chip = alive(card, device), found = id == ALL_VDEVICES;
    for (int i = 0; chip >= 0 && i < MAX_VNPUS; i++)
        if (vnpus[chip][i].id != 0 && (id == ALL_VDEVICES || vnpus[chip][i].id == id)) {
            vnpus[chip][i].id = 0;
            found = 1;
        }
    return chip < 0 ? chip : found ? OK : INVALID_PARAMETER;
}

static int one_vnpu(int chip, vdev_t *answer)
{
    for (int i = 0; i < MAX_VNPUS; i++)
        if (vnpus[chip][i].id != 0 && vnpus[chip][i].id == answer->vdev_id) {
            int template = vnpus[chip][i].template;
            memset(&answer->info, 0, sizeof answer->info);
            text(answer->info.name, sizeof answer->info.name, hf_str("template", template, "name", ""));
            answer->info.computing.aic = (float)hf_int("template", template, "aicores", 0);
            answer->info.computing.memory_mb = hf_u64("template", template, "memory_mib", 0);
            return OK;
        }
    return NOT_EXIST;
}

static int totals(int chip, totals_t *answer)
{
    memset(answer, 0, sizeof *answer);
    answer->computing.aic = (float)number(chip, "aicores", 20);
    answer->computing.device_aicpu = (unsigned short)number(chip, "aicpus", 0);
    answer->computing.memory_mb = (unsigned long long)(number(chip, "hbm_mib", 0) + number(chip, "ddr_mib", 0));
    for (int i = 0; i < MAX_VNPUS; i++)
        if (vnpus[chip][i].id != 0)
            answer->vdev_id[answer->vdev_num++] = vnpus[chip][i].id;
    return OK;
}

/* `size` is the size of the buffer going in: one that is not the structure's own is refused. */
HF_EXPORT int dcmi_get_device_info(int card, int device, int main_command, uint sub_command, void *buffer, uint *size)
{
    int chip = alive(card, device);
    if (chip < 0)
        return chip;
    if (main_command != VDEV_MANAGEMENT || unsupported(chip, "vnpu"))
        return UNSUPPORTED;
    if (sub_command == 0 && *size == sizeof(vdev_t))
        return one_vnpu(chip, buffer);
    if (sub_command == 1 && *size == sizeof(totals_t))
        return totals(chip, buffer);
    if (sub_command == 2 && *size == sizeof(free_t)) {
        *(free_t *)buffer = (free_t){.computing = left(chip)};
        return OK;
    }
    return INVALID_PARAMETER;
}
