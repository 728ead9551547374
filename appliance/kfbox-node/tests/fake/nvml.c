/* A fake of NVIDIA's management library for tests on machines without a card: two cards, the second in MIG mode with two
 * instances. It reads EVENT, a file that holds a Xid number and a card's index, once for each event.
 * Types and numbers are those of nvml.h: https://docs.nvidia.com/deploy/nvml-api/ */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10 };
enum { XID_CRITICAL_ERROR = 8, CARDS = 2, PLACES = 7 };

struct device { int card, place; };
struct memory { unsigned version; unsigned long long total, reserved, available, used; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
struct event { struct device *device; unsigned long long kind, data; unsigned gpu, compute; };

static struct device cards[CARDS] = {{0, -1}, {1, -1}};
static struct device places[PLACES] = {{1, 0}, {1, 1}, {1, 2}, {1, 3}, {1, 4}, {1, 5}, {1, 6}};

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "a fake error"; }

static int text(char *to, unsigned size, const char *from) {
  snprintf(to, size, "%s", from);
  return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return text(to, size, "550.54.14"); }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = CARDS; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
  if (index >= CARDS) return INVALID_ARGUMENT;
  *device = &cards[index];
  return SUCCESS;
}

int nvmlDeviceGetUUID(struct device *device, char *to, unsigned size) {
  char id[64];
  if (device->place < 0) snprintf(id, sizeof id, "GPU-fake-%d", device->card);
  else snprintf(id, sizeof id, "MIG-fake-%d", device->place);
  return text(to, size, id);
}

int nvmlDeviceGetName(struct device *device, char *to, unsigned size) {
  return text(to, size, device->place < 0 ? "NVIDIA Fake 80GB" : "NVIDIA Fake 80GB MIG 1g.10gb");
}

int nvmlDeviceGetMinorNumber(struct device *device, unsigned *number) { *number = device->card; return SUCCESS; }

int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory *memory) {
  memory->total = (device->place < 0 ? 80ull : 10ull) << 30;
  return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *pci) {
  memset(pci, 0, sizeof *pci);
  snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", device->card + 1);
  return SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *now, unsigned *next) {
  if (device->card == 0) return NOT_SUPPORTED;
  *now = *next = 1;
  return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count) {
  *count = device->card == 0 ? 0 : PLACES;
  return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **part) {
  if (device->card == 0 || index >= PLACES) return INVALID_ARGUMENT;
  /* Instances may lie anywhere. */
  if (index != 1 && index != 4) return NOT_FOUND;
  *part = &places[index];
  return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(struct device *device, unsigned *id) { *id = 7 + device->place; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(struct device *device, unsigned *id) { (void)device; *id = 0; return SUCCESS; }

int nvmlEventSetCreate(void **set) { static int one; *set = &one; return SUCCESS; }
int nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }
int nvmlDeviceRegisterEvents(struct device *device, unsigned long long kinds, void *set) {
  (void)device, (void)kinds, (void)set;
  return SUCCESS;
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned milliseconds) {
  (void)set;
  for (unsigned waited = 0; waited < milliseconds; waited += 10) {
    unsigned long long xid;
    int card;
    FILE *file = fopen(EVENT, "r");
    int read = file ? fscanf(file, "%llu %d", &xid, &card) : 0;
    if (file) fclose(file);
    if (read == 2) {
      unlink(EVENT);
      memset(event, 0, sizeof *event);
      event->device = &cards[card];
      event->kind = XID_CRITICAL_ERROR;
      event->data = xid;
      return SUCCESS;
    }
    usleep(10000);
  }
  return TIMEOUT;
}
