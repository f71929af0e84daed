/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: initialisation, and the devices of the machine as CUDA_VISIBLE_DEVICES shows them. */
#include "fake_cuda.h"

#include <strings.h>

pthread_mutex_t fc_mutex = PTHREAD_MUTEX_INITIALIZER;
struct fc_device fc_devices[FC_DEVICES];
int fc_device_count;
static int64_t owner; /* the process that called cuInit: a driver does not survive fork */

uint64_t fc_next_id(void)
{
    static uint64_t last;
    return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

CUresult fc_code(enum card_answer answer)
{
    switch (answer) {
    case CARD_OK: return CUDA_SUCCESS;
    case CARD_FULL: return CUDA_ERROR_OUT_OF_MEMORY;
    case CARD_LOST: return CUDA_ERROR_NO_DEVICE;
    default: return CUDA_ERROR_UNKNOWN;
    }
}

CUresult fc_ready(void)
{
    return __atomic_load_n(&owner, __ATOMIC_ACQUIRE) == (int64_t)getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult fc_known(CUdevice device)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (device < 0 || device >= fc_device_count)
        return CUDA_ERROR_INVALID_DEVICE;
    (void)card_load(FC_MACHINE);
    return card_lost(fc_card(device)) ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

static void show(int card, const char *mig)
{
    if (fc_device_count == FC_DEVICES)
        return;
    struct fc_device *device = &fc_devices[fc_device_count++];
    memset(device, 0, sizeof *device);
    device->card = card;
    device->mig = mig != NULL;
    hf_copy(device->uuid, sizeof device->uuid, mig != NULL ? mig : hf_str("device", card, "uuid", ""));
}

/* The machine's index of one word of CUDA_VISIBLE_DEVICES: an ordinal, a UUID or a beginning of one, a MIG device; -1: none. */
static int named(const char *word)
{
    char *end;
    int count = hf_count("device"), found = -1;
    unsigned index = 0;
    if (strncmp(word, "MIG-", 4) == 0) /* fake NVML writes the GPU's index in the last group */
        return strrchr(word, '-') != NULL && sscanf(strrchr(word, '-') + 1, "%x", &index) == 1 && (int)index < count ? (int)index : -1;
    if (strncmp(word, "GPU-", 4) == 0) {
        for (int i = 0; i < count; i++)
            if (strncasecmp(hf_str("device", i, "uuid", ""), word, strlen(word)) == 0)
                found = found == -1 ? i : -2; /* a beginning that fits two names none */
        return found;
    }
    long ordinal = strtol(word, &end, 10);
    return *word != '\0' && *end == '\0' && ordinal >= 0 && ordinal < count ? (int)ordinal : -1;
}

/* The devices that the vendor's container runtime lets through; nobody stands in for it but us. NULL: all. */
static const char *let_through(void)
{
    const char *given = getenv("NVIDIA_VISIBLE_DEVICES");
    return given == NULL || strcmp(given, "all") == 0 ? NULL : given;
}

/* As the driver does it: the list ends at the first word that names no device. */
static void find_devices(void)
{
    const char *own = getenv("CUDA_VISIBLE_DEVICES"), *visible = own != NULL ? own : let_through();
    char *list = visible != NULL ? strdup(visible) : NULL, *rest = NULL;
    fc_device_count = 0;
    for (int i = 0; list == NULL && i < hf_count("device") && i < CARD_DEVICES; i++)
        show(i, NULL);
    for (char *word = list != NULL ? strtok_r(list, ",", &rest) : NULL; word != NULL; word = strtok_r(NULL, ",", &rest)) {
        word = hf_trim(word);
        int card = named(word);
        if (card < 0 || card >= CARD_DEVICES)
            break;
        show(card, strncmp(word, "MIG-", 4) == 0 ? word : NULL);
    }
    free(list);
}

CUresult fake_cuInit(unsigned int flags)
{
    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (owner != 0 && owner != (int64_t)getpid())
        return CUDA_ERROR_NOT_INITIALIZED;
    fc_lock();
    if (owner == 0) {
        if (card_load(FC_MACHINE) != 0)
            return fc_unlock(CUDA_ERROR_NO_DEVICE);
        find_devices();
        if (fc_device_count == 0)
            return fc_unlock(CUDA_ERROR_NO_DEVICE);
        __atomic_store_n(&owner, (int64_t)getpid(), __ATOMIC_RELEASE);
    }
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuDriverGetVersion(int *version)
{
    if (version == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    (void)card_load(FC_MACHINE); /* the one question that may come before cuInit */
    *version = (int)hf_int("machine", -1, "cuda", 12040);
    return CUDA_SUCCESS;
}

CUresult fake_cuDeviceGetCount(int *count)
{
    CUresult result = count == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result == CUDA_SUCCESS)
        *count = fc_device_count;
    return result;
}

CUresult fake_cuDeviceGet(CUdevice *device, int ordinal)
{
    CUresult result = device == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(ordinal);
    if (result == CUDA_SUCCESS)
        *device = ordinal;
    return result;
}

CUresult fake_cuDeviceGetName(char *name, int length, CUdevice device)
{
    CUresult result = name == NULL || length <= 0 ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result == CUDA_SUCCESS)
        snprintf(name, (size_t)length, "%s%s", hf_str("device", fc_card(device), "name", "NVIDIA fake"), fc_devices[device].mig ? " MIG" : "");
    return result;
}

/* "GPU-2c3f53f3-96d1-…" as sixteen bytes. */
static void uuid_bytes(const char *text, CUuuid *uuid)
{
    size_t length = 0;
    memset(uuid, 0, sizeof *uuid);
    text = strchr(text, '-') != NULL ? strchr(text, '-') + 1 : text;
    for (; *text != '\0' && length < 32; text++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, tolower((unsigned char)*text));
        if (digit == NULL)
            continue;
        uuid->bytes[length / 2] = (char)((unsigned char)uuid->bytes[length / 2] << 4 | (unsigned char)(digit - digits));
        length++;
    }
}

CUresult fake_cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    CUresult result = uuid == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result == CUDA_SUCCESS)
        uuid_bytes(hf_str("device", fc_card(device), "uuid", ""), uuid);
    return result;
}

/* The second version tells MIG devices apart; the first one names the whole GPU. */
CUresult fake_cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    CUresult result = uuid == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result == CUDA_SUCCESS)
        uuid_bytes(fc_devices[device].uuid, uuid);
    return result;
}

static void pci_of(int device, unsigned pci[3])
{
    pci[0] = pci[1] = pci[2] = 0;
    sscanf(hf_str("device", fc_card(device), "pci", ""), "%x:%x:%x", &pci[0], &pci[1], &pci[2]);
}

CUresult fake_cuDeviceGetPCIBusId(char *text, int length, CUdevice device)
{
    unsigned pci[3];
    CUresult result = text == NULL || length < 13 ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    pci_of(device, pci);
    snprintf(text, (size_t)length, "%04X:%02X:%02X.0", pci[0], pci[1], pci[2]);
    return CUDA_SUCCESS;
}

CUresult fake_cuDeviceGetByPCIBusId(CUdevice *device, const char *text)
{
    unsigned pci[3], wanted[3] = {0, 0, 0};
    CUresult result = device == NULL || text == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (sscanf(text, "%x:%x:%x", &wanted[0], &wanted[1], &wanted[2]) < 3)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < fc_device_count; i++) {
        pci_of(i, pci);
        if (memcmp(pci, wanted, sizeof pci) == 0) {
            *device = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

CUresult fake_cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    uint64_t capacity, used;
    CUresult result = bytes == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    card_memory(fc_card(device), &capacity, &used);
    uint64_t slice = hf_u64("device", fc_card(device), "mig_memory_mib", 0) << 20;
    *bytes = fc_devices[device].mig && slice != 0 ? slice : capacity;
    return CUDA_SUCCESS;
}

CUresult fake_cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    static const struct { int attribute, value; } answers[] = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536}, {10, 32}, {13, 1410000},
        {15, 1}, {18, 0}, {19, 1}, {20, 0}, {31, 1}, {36, 1215000}, {37, 5120}, {38, 41943040}, {39, 2048}, {40, 3}, {41, 1}, {78, 1}, {79, 1},
        {83, 1}, {89, 1}, {90, 1}, {91, 1}, {95, 1}, {102, 1}, {103, 1}, {115, 1}, {119, 1}, {121, 1}, {134, 1},
    };
    int major = 8, minor = 0;
    unsigned pci[3];
    CUresult result = value == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    pci_of(device, pci);
    sscanf(hf_str("device", fc_card(device), "compute_capability", "8.0"), "%d.%d", &major, &minor);
    *value = 0;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        if (answers[i].attribute == attribute)
            *value = answers[i].value;
    switch (attribute) {
    case 16: *value = (int)hf_int("device", fc_card(device), "cores", 6912) / 64; break; /* multiprocessors */
    case 33: *value = (int)pci[1]; break;
    case 34: *value = (int)pci[2]; break;
    case 50: *value = (int)pci[0]; break;
    case 75: *value = major; break;
    case 76: *value = minor; break;
    default: break;
    }
    return attribute <= 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult fake_cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    CUresult result = major == NULL || minor == NULL ? CUDA_ERROR_INVALID_VALUE : fake_cuDeviceGetAttribute(major, 75, device);
    return result == CUDA_SUCCESS ? fake_cuDeviceGetAttribute(minor, 76, device) : result;
}
