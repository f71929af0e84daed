/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake libcndev.so with CNDev's true ABI: structure first, device last, checked version words, two-call buffers.
 * It plays the machine in the file that HAMI_FAKE_CAMBRICON names, and reads the file again when it changes:
 *
 *     health = ok | error | lost           in [device N]; at once, and back again with ok
 *              error: the card answers and says that it is not well; lost: every call about it fails with 6
 *     memory_used_mib, utilization, processes = PID:MIB,PID:MIB
 *     unsupported = numa,sn,pcie,smlu,utilization,power     facts that this card answers with 10
 *
 * sMLU profiles and instances outlive the process, as they do in the driver: they stand in `<machine file>.smlu`, one to a line.
 * Layouts and numbers: the bindings of Cambricon's device plugin (CNDev 6.5); sizes are asserted below.
 */
#include "hami_card_time.h"

enum {
    OK = 0, NO_DRIVER = 1, API_VERSION = 3, UNINITIALISED = 4, INVALID_ARGUMENT = 5, INVALID_DEVICE = 6, TOO_SMALL = 9, NOT_SUPPORTED = 10,
    INVALID_LINK = 11, NOT_FOUND = 14, IN_USE = 15, DUPLICATE = 16
};
enum { VERSION = 6, FIRST_HANDLE = 64, MAX_PROFILES = 16, MAX_OBJECTS = 512, CORES = 80, MAX_USERS = 128 };

typedef struct { int32_t version; uint32_t number; } count_t;
typedef struct { int32_t version; uint8_t uuid[37]; uint64_t ncs; } uuid_t;
typedef struct { int32_t version; int id; } card_name_t;
typedef struct { int32_t version; uint64_t sn, motherboard; } sn_t;
typedef struct { int64_t total, used, reserved, virtual_total, virtual_used; uint64_t global; uint64_t rsv[16]; } memory_t;
typedef struct { int32_t version; int average, core[CORES]; } utilization_t;
typedef struct { int32_t version; int board, cluster[20], memory_die[8], chip, air_inlet, air_outlet, memory, video, cpu, isp; } temperature_t;
typedef struct { int32_t usage, cap, machine, tdp, max, rsv[16]; } power_t;
typedef struct { int32_t version; int health, device_state, driver_state; } health_t;
typedef struct { int32_t version; int32_t node; } numa_t;
typedef struct { int32_t version; int mode; } mode_t_;
typedef struct { int32_t version; unsigned mcu_major, mcu_minor, mcu_build, driver_major, driver_minor, driver_build; } version_t;
typedef struct {
    uint32_t subsystem, device_id; uint16_t vendor, subvendor; uint32_t domain, bus, device, function; uint16_t module, slot; uint32_t rsv[8];
} pcie_t;
typedef struct { int mac, serdes, presence; uint32_t progress; uint32_t rsv[7]; } link_t;
typedef struct {
    int32_t version; uint64_t mc_sn, ba_sn; uint32_t slot, port; uint8_t ip[16], uuid[37]; uint32_t ip_version, ip_valid; int32_t connect;
    uint64_t ncs; uint8_t mac[6]; char port_name[256];
} remote_t;
typedef struct { int32_t version; uint32_t pid; uint64_t physical_kib, virtual_kib; } process_t;
typedef struct { int32_t version; uint32_t quota; uint64_t memory; } set_t;
typedef struct { int32_t version; int count; int ids[128]; } ids_t;
typedef struct { int32_t version; int id; char name[100]; uint32_t total, remain; uint32_t quota[2]; uint64_t memory[2]; } profile_t;
typedef struct {
    int32_t version; int profile, instance; uint8_t uuid[37]; int32_t domain, bus, device, function; char profile_name[100], name[100], node[100];
    uint32_t quota[2]; uint64_t memory[2]; uint32_t rsv[128];
} instance_t;

_Static_assert(sizeof(set_t) == 16 && sizeof(memory_t) == 176 && sizeof(uuid_t) == 56 && sizeof(pcie_t) == 64, "CNDev's own sizes");

/* A profile (`profile` is -1) or an instance of a card. */
struct object { int card, id, profile; unsigned quota; unsigned long long memory; char name[100]; };
static struct object objects[MAX_OBJECTS];
static int object_count, initialised, smlu_modes[64];

#define CHECK(condition, code) do { if (!(condition)) return (code); } while (0)
#define CHECK_VERSION(info) CHECK((info)->version == VERSION, API_VERSION)

static int64_t number(int card, const char *key, int64_t otherwise) { return hf_int("device", card, key, otherwise); }
static int unsupported(int card, const char *fact) { return strstr(hf_str("device", card, "unsupported", ""), fact) != NULL; }
static int health_is(int card, const char *state) { return strcmp(hf_str("device", card, "health", "ok"), state) == 0; }
static void text(void *to, size_t size, const char *from) { snprintf(to, size, "%s", from); }

/* The index of the card behind a handle; a negative error code otherwise. */
static int card_of(int32_t device)
{
    if (!initialised)
        return -UNINITIALISED;
    if (card_load("HAMI_FAKE_CAMBRICON") != 0)
        return -NO_DRIVER;
    int card = device - FIRST_HANDLE;
    return card >= 0 && card < hf_count("device") && !health_is(card, "lost") ? card : -INVALID_DEVICE;
}

#define CARD(device) \
    int card = card_of(device); \
    CHECK(card >= 0, -card)

HF_EXPORT const char *cndevGetErrorString(int code)
{
    static const char *words[] = {"success", "no driver", "the driver is too old", "wrong API version", "not initialised", "invalid argument", "invalid device",
                                  "unknown error", "out of memory", "insufficient space", "not supported", "invalid link", "no devices", "no permission",
                                  "not found", "in use", "duplicate", "timeout", "in problem"};
    return code >= 0 && code < (int)(sizeof words / sizeof *words) ? words[code] : "unknown error";
}

HF_EXPORT int cndevInit(int reserved)
{
    CHECK(reserved == 0, INVALID_ARGUMENT);
    CHECK(card_load("HAMI_FAKE_CAMBRICON") == 0, NO_DRIVER);
    initialised = 1;
    return OK;
}

HF_EXPORT int cndevRelease(void) { initialised = 0; return OK; }

HF_EXPORT int cndevGetDeviceCount(count_t *info)
{
    CHECK(initialised, UNINITIALISED);
    CHECK_VERSION(info);
    CHECK(card_load("HAMI_FAKE_CAMBRICON") == 0, NO_DRIVER);
    info->number = (uint32_t)hf_count("device");
    return OK;
}

HF_EXPORT int cndevGetDeviceHandleByIndex(int index, int32_t *device)
{
    *device = FIRST_HANDLE + index;
    CARD(*device);
    return OK;
}

HF_EXPORT int cndevGetDeviceHandleByUUID(const char *uuid, int32_t *device)
{
    CHECK(initialised, UNINITIALISED);
    CHECK(card_load("HAMI_FAKE_CAMBRICON") == 0, NO_DRIVER);
    for (int card = 0; card < hf_count("device"); card++)
        if (!health_is(card, "lost") && strcmp(hf_str("device", card, "uuid", ""), uuid) == 0) {
            *device = FIRST_HANDLE + card;
            return OK;
        }
    return NOT_FOUND;
}

HF_EXPORT int cndevGetUUID(uuid_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    text(info->uuid, sizeof info->uuid, hf_str("device", card, "uuid", ""));
    info->ncs = hf_u64("device", card, "sn", 0);
    return OK;
}

HF_EXPORT int cndevGetCardName(card_name_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    info->id = (int)number(card, "name_id", 23);
    return OK;
}

HF_EXPORT const char *cndevGetCardNameStringByDevId(int32_t device)
{
    int card = card_of(device);
    return card < 0 ? "UNKNOWN" : hf_str("device", card, "name", "MLU370-X8");
}

HF_EXPORT int cndevGetCardSN(sn_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    CHECK(!unsupported(card, "sn"), NOT_SUPPORTED);
    info->sn = hf_u64("device", card, "sn", 0);
    info->motherboard = hf_u64("device", card, "board_sn", 0);
    return OK;
}

HF_EXPORT int cndevGetMemoryUsageV2(memory_t *info, int32_t device)
{
    CARD(device);
    uint64_t capacity, used;
    card_memory(card, &capacity, &used); /* what programs have taken on the fake CNDrv */
    *info = (memory_t){.total = number(card, "memory_mib", 0), .used = number(card, "memory_used_mib", 0) + (int64_t)(used >> 20)};
    info->virtual_total = info->total;
    info->virtual_used = info->used;
    return OK;
}

HF_EXPORT int cndevGetDeviceUtilizationInfo(utilization_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    CHECK(!unsupported(card, "utilization"), NOT_SUPPORTED);
    info->average = (int)number(card, "utilization", 0) + (int)card_utilization(card);
    for (int core = 0; core < CORES; core++)
        info->core[core] = core < 16 ? info->average : 0;
    return OK;
}

HF_EXPORT int cndevGetTemperatureInfo(temperature_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    *info = (temperature_t){.version = VERSION, .board = (int)number(card, "temperature", 41), .chip = (int)number(card, "temperature", 41)};
    return OK;
}

HF_EXPORT int cndevGetDevicePowerInfo(power_t *info, int32_t device)
{
    CARD(device);
    CHECK(!unsupported(card, "power"), NOT_SUPPORTED);
    *info = (power_t){.usage = (int32_t)number(card, "power", 52), .cap = 250, .tdp = 250, .max = 250};
    return OK;
}

HF_EXPORT int cndevGetCardHealthState(health_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    int well = health_is(card, "ok");
    *info = (health_t){.version = VERSION, .health = well, .device_state = well ? 1 : 2, .driver_state = 4};
    return OK;
}

HF_EXPORT int cndevGetComputeMode(mode_t_ *info, int32_t device) { CHECK_VERSION(info); CARD(device); info->mode = 0; return OK; }

HF_EXPORT int cndevGetNUMANodeIdByDevId(numa_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    CHECK(!unsupported(card, "numa"), NOT_SUPPORTED);
    info->node = (int32_t)number(card, "numa", -1);
    return OK;
}

HF_EXPORT int cndevGetPCIeInfoV2(pcie_t *info, int32_t device)
{
    CARD(device);
    memset(info, 0, sizeof *info);
    info->vendor = info->subvendor = 0xcabc;
    info->device_id = (uint32_t)number(card, "pci_device", 0x0370);
    info->slot = (uint16_t)number(card, "slot", card);
    CHECK(!unsupported(card, "pcie"), NOT_SUPPORTED);
    CHECK(sscanf(hf_str("device", card, "pci", ""), "%x:%x:%x.%x", &info->domain, &info->bus, &info->device, &info->function) == 4, NOT_SUPPORTED);
    return OK;
}

HF_EXPORT int cndevGetVersionInfo(version_t *info, int32_t device)
{
    CHECK_VERSION(info);
    CARD(device);
    CHECK(sscanf(hf_str("machine", -1, "driver", "6.2.10"), "%u.%u.%u", &info->driver_major, &info->driver_minor, &info->driver_build) == 3, NOT_SUPPORTED);
    return OK;
}

/* `links = 1:up,1:up,3:down` names, port by port, the card at the far end. */
static const char *port_of(int card, int port)
{
    const char *at = hf_str("device", card, "links", "");
    for (; port > 0 && *at != '\0'; port--)
        at += strcspn(at, ","), at += *at == ',';
    return *at != '\0' ? at : NULL;
}

HF_EXPORT int cndevGetMLULinkPortNumber(int32_t device)
{
    int card = card_of(device), ports = 0;
    CHECK(card >= 0, card);
    while (port_of(card, ports) != NULL)
        ports++;
    return ports;
}

HF_EXPORT int cndevGetMLULinkStatusV2(link_t *info, int32_t device, int port)
{
    CARD(device);
    const char *at = port_of(card, port);
    CHECK(at != NULL, INVALID_LINK);
    int up = strncmp(strchr(at, ':'), ":up", 3) == 0;
    *info = (link_t){.mac = up, .serdes = up, .presence = 1};
    return OK;
}

HF_EXPORT int cndevGetMLULinkRemoteInfo(remote_t *info, int32_t device, int port)
{
    CHECK_VERSION(info);
    CARD(device);
    const char *at = port_of(card, port);
    CHECK(at != NULL, INVALID_LINK);
    int other = (int)strtol(at, NULL, 10);
    text(info->uuid, sizeof info->uuid, hf_str("device", other, "uuid", ""));
    info->slot = (uint32_t)number(other, "slot", other);
    info->port = (uint32_t)port;
    return OK;
}

HF_EXPORT int cndevGetProcessInfo(uint32_t *count, process_t *processes, int32_t device)
{
    CARD(device);
    uint32_t room = *count;
    *count = 0;
    for (const char *at = hf_str("device", card, "processes", ""); *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        unsigned pid = 0, mib = 0;
        if (sscanf(at, "%u:%u", &pid, &mib) == 2 && (*count)++ < room) {
            CHECK_VERSION(&processes[*count - 1]);
            processes[*count - 1].pid = pid;
            processes[*count - 1].physical_kib = processes[*count - 1].virtual_kib = (uint64_t)mib * 1024;
        }
    }
    struct card_user users[MAX_USERS];
    unsigned ours = card_users(card, users, MAX_USERS);
    for (unsigned i = 0; i < ours && i < MAX_USERS; i++) {
        if ((*count)++ >= room)
            continue;
        CHECK_VERSION(&processes[*count - 1]);
        processes[*count - 1].pid = users[i].host_pid;
        processes[*count - 1].physical_kib = processes[*count - 1].virtual_kib = users[i].bytes / 1024;
    }
    return *count > room ? TOO_SMALL : OK;
}

/* -- sMLU --------------------------------------------------------------------------------------------------------- */

static FILE *smlu_file(const char *how)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.smlu", getenv("HAMI_FAKE_CAMBRICON"));
    return fopen(path, how);
}

static void load_objects(void)
{
    FILE *file = smlu_file("re");
    struct object *next = objects;
    object_count = 0;
    while (file != NULL && object_count < MAX_OBJECTS &&
           fscanf(file, "%d %d %d %u %llu %99s", &next->card, &next->id, &next->profile, &next->quota, &next->memory, next->name) == 6)
        next = &objects[++object_count];
    if (file != NULL)
        fclose(file);
}

static int save_objects(void)
{
    FILE *file = smlu_file("we");
    CHECK(file != NULL, NO_DRIVER);
    for (int i = 0; i < object_count; i++) {
        const struct object *o = &objects[i];
        fprintf(file, "%d %d %d %u %llu %s\n", o->card, o->id, o->profile, o->quota, o->memory, o->name);
    }
    return fclose(file) == 0 ? OK : NO_DRIVER;
}

static struct object *object(int card, int is_profile, int id)
{
    for (int i = 0; i < object_count; i++)
        if (objects[i].card == card && (objects[i].profile < 0) == is_profile && objects[i].id == id)
            return &objects[i];
    return NULL;
}

static int fresh_id(int card, int is_profile)
{
    int id = is_profile ? 0 : 1;
    while (object(card, is_profile, id) != NULL)
        id++;
    return id;
}

static void drop(struct object *gone)
{
    *gone = objects[--object_count];
}

#define SMLU(device) \
    CARD(device); \
    CHECK(!unsupported(card, "smlu"), NOT_SUPPORTED); \
    load_objects()

HF_EXPORT int cndevGetSMLUMode(mode_t_ *info, int32_t device) { CHECK_VERSION(info); SMLU(device); info->mode = smlu_modes[card]; return OK; }

HF_EXPORT int cndevSetSMLUMode(const mode_t_ *info, int32_t device)
{
    CHECK_VERSION(info);
    SMLU(device);
    smlu_modes[card] = info->mode;
    return OK;
}

HF_EXPORT int cndevGetMimMode(mode_t_ *info, int32_t device) { CHECK_VERSION(info); CARD(device); info->mode = 0; return OK; }
HF_EXPORT int cndevGetAllMluInstanceInfo(int *count, void *info, int32_t device) { (void)info; CARD(device); *count = 0; return OK; }

HF_EXPORT int cndevCreateSMluProfileInfo(const set_t *set, int *profile, int32_t device)
{
    CHECK_VERSION(set);
    SMLU(device);
    CHECK(set->quota >= 1 && set->quota <= 100 && set->memory > 0 && set->memory <= (uint64_t)number(card, "memory_mib", 0) << 20, INVALID_ARGUMENT);
    int count = 0;
    for (int i = 0; i < object_count; i++)
        if (objects[i].card == card && objects[i].profile < 0) {
            count++;
            CHECK(objects[i].quota != set->quota || objects[i].memory != set->memory, DUPLICATE);
        }
    CHECK(count < MAX_PROFILES && object_count < MAX_OBJECTS, TOO_SMALL);
    struct object made = {.card = card, .id = fresh_id(card, 1), .profile = -1, .quota = set->quota, .memory = set->memory};
    snprintf(made.name, sizeof made.name, "%u.%llumb", made.quota, made.memory >> 20);
    objects[object_count++] = made;
    *profile = made.id;
    return save_objects();
}

HF_EXPORT int cndevGetSMluProfileIdInfo(ids_t *info, int32_t device)
{
    CHECK_VERSION(info);
    SMLU(device);
    info->count = 0;
    for (int i = 0; i < object_count; i++)
        if (objects[i].card == card && objects[i].profile < 0)
            info->ids[info->count++] = objects[i].id;
    return OK;
}

static unsigned long long memory_left(int card)
{
    unsigned long long left = hf_u64("device", card, "memory_mib", 0) << 20;
    for (int i = 0; i < object_count; i++)
        if (objects[i].card == card && objects[i].profile >= 0)
            left -= objects[i].memory;
    return left;
}

HF_EXPORT int cndevGetSMluProfileInfo(profile_t *info, int profile, int32_t device)
{
    CHECK_VERSION(info);
    SMLU(device);
    const struct object *found = object(card, 1, profile);
    CHECK(found != NULL, NOT_FOUND);
    *info = (profile_t){.version = VERSION, .id = profile, .quota = {found->quota, 1}, .memory = {found->memory, 1}};
    text(info->name, sizeof info->name, found->name);
    info->total = (uint32_t)((hf_u64("device", card, "memory_mib", 0) << 20) / found->memory);
    info->remain = (uint32_t)(memory_left(card) / found->memory);
    return OK;
}

HF_EXPORT int cndevDestroySMluProfileInfo(int profile, int32_t device)
{
    SMLU(device);
    struct object *found = object(card, 1, profile);
    CHECK(found != NULL, NOT_FOUND);
    for (int i = 0; i < object_count; i++)
        CHECK(objects[i].card != card || objects[i].profile != profile, IN_USE);
    drop(found);
    return save_objects();
}

HF_EXPORT int cndevCreateSMluInstanceByProfileId(int32_t *instance, unsigned profile, int32_t device, char *name)
{
    SMLU(device);
    CHECK(smlu_modes[card] == 1, NOT_SUPPORTED);
    const struct object *from = object(card, 1, (int)profile);
    CHECK(from != NULL, NOT_FOUND);
    CHECK(memory_left(card) >= from->memory && object_count < MAX_OBJECTS, TOO_SMALL);
    struct object made = {.card = card, .id = fresh_id(card, 0), .profile = (int)profile, .quota = from->quota, .memory = from->memory};
    text(made.name, sizeof made.name, *name != '\0' ? name : "unnamed");
    objects[object_count++] = made;
    *instance = (int32_t)(made.id << 8 | number(card, "slot", card));
    return save_objects();
}

static void describe(instance_t *info, const struct object *o)
{
    const struct object *profile = object(o->card, 1, o->profile);
    int slot = (int)number(o->card, "slot", o->card);
    *info = (instance_t){.version = VERSION, .profile = o->profile, .instance = o->id, .quota = {o->quota, 1}, .memory = {o->memory, 1}};
    text(info->name, sizeof info->name, o->name);
    text(info->profile_name, sizeof info->profile_name, profile != NULL ? profile->name : "");
    snprintf((char *)info->uuid, sizeof info->uuid, "%.28s%08x", hf_str("device", o->card, "uuid", ""), o->id);
    snprintf(info->node, sizeof info->node, "/dev/cambricon-caps/cap_dev%d_mi%d", slot, o->id);
}

HF_EXPORT int cndevGetAllSMluInstanceInfo(int *count, instance_t *infos, int32_t device)
{
    SMLU(device);
    int room = *count;
    *count = 0;
    for (int i = 0; i < object_count; i++)
        if (objects[i].card == card && objects[i].profile >= 0 && (*count)++ < room) {
            CHECK_VERSION(&infos[*count - 1]);
            describe(&infos[*count - 1], &objects[i]);
        }
    return *count > room ? TOO_SMALL : OK;
}

/* The card in slot `handle & 255`, its objects loaded; a negative error code otherwise. */
static int card_in_slot(int32_t handle)
{
    for (int card = 0; card < hf_count("device"); card++)
        if (number(card, "slot", card) == (handle & 255)) {
            load_objects();
            return card_of(FIRST_HANDLE + card);
        }
    return -NOT_FOUND;
}

HF_EXPORT int cndevGetSMluInstanceInfo(instance_t *info, int32_t handle)
{
    CHECK_VERSION(info);
    int card = card_in_slot(handle);
    CHECK(card >= 0, -card);
    const struct object *found = object(card, 0, handle >> 8);
    CHECK(found != NULL, NOT_FOUND);
    describe(info, found);
    return OK;
}

HF_EXPORT int cndevDestroySMluInstanceByHandle(int32_t handle)
{
    int card = card_in_slot(handle);
    CHECK(card >= 0, -card);
    struct object *found = object(card, 0, handle >> 8);
    CHECK(found != NULL, NOT_FOUND);
    drop(found);
    return save_objects();
}
