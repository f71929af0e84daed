// SPDX-License-Identifier: Apache-2.0

// probe is the program in the end-to-end tests' containers. It says as one line of JSON what the container sees, and whether
// the limits it was given are its own:
//
//	MATCH  limits.json, HAMI_GRANT and the downward API name the same pod and container
//	WRONG  they do not; `problems` says how
//	NONE   neither limits.json nor HAMI_GRANT is there
//
// The pod says who it is by the downward API: POD_UID, and CONTAINER_NAME in plain text. After the line it waits for SIGTERM
// (and ends at once), or for the time of --run. SIGHUP: it looks again and prints another line.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

const limitsPath = "/run/hami/limits.json"

// Mount is one line of /proc/self/mountinfo.
type Mount struct {
	Target  string `json:"target"`
	Root    string `json:"root"`
	Options string `json:"options"`
	Type    string `json:"type"`
}

// Device is one file below /dev. Opens is empty when it could be opened, else why not.
type Device struct {
	Path  string `json:"path"`
	Kind  string `json:"kind"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Opens string `json:"opens"`
}

// Report is what one look found.
type Report struct {
	Status    string            `json:"status"`
	Problems  []string          `json:"problems"`
	Look      int               `json:"look"`
	Pod       string            `json:"podUID"`
	Container string            `json:"container"`
	Env       map[string]string `json:"env"`
	Limits    json.RawMessage   `json:"limits"`
	Preload   string            `json:"preload"`
	Mounts    []Mount           `json:"mounts"`
	Devices   []Device          `json:"devices"`
	UnixTime  float64           `json:"time"`
}

func environment() map[string]string {
	found := map[string]string{}
	for _, pair := range os.Environ() {
		key, value, _ := strings.Cut(pair, "=")
		found[key] = value
	}
	return found
}

func mounts() []Mount {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	found := []Mount{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 9 {
			continue
		}
		kind := ""
		for at := 6; at < len(fields)-1; at++ {
			if fields[at] == "-" {
				kind = fields[at+1]
				break
			}
		}
		found = append(found, Mount{Root: fields[3], Target: fields[4], Options: fields[5], Type: kind})
	}
	return found
}

// devices lists what lies below /dev beside what every container has: nodes only, no links, no folders of mounts.
func devices() []Device {
	found := []Device{}
	walk := func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return nil
		}
		if info.IsDir() && (path == "/dev/pts" || path == "/dev/shm" || path == "/dev/mqueue") {
			return filepath.SkipDir
		}
		if info.Mode()&os.ModeDevice == 0 {
			return nil
		}
		raw := info.Sys().(*syscall.Stat_t)
		number := raw.Rdev // makedev(3)
		kind := "b"
		if info.Mode()&os.ModeCharDevice != 0 {
			kind = "c"
		}
		opens := ""
		if file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0); err != nil {
			opens = err.Error()
		} else {
			file.Close()
		}
		major := uint32((number>>8)&0xfff | (number>>32)&^0xfff)
		minor := uint32(number&0xff | (number>>12)&^0xff)
		found = append(found, Device{Path: path, Kind: kind, Major: major, Minor: minor, Opens: opens})
		return nil
	}
	_ = filepath.Walk("/dev", walk)
	sort.Slice(found, func(a, b int) bool { return found[a].Path < found[b].Path })
	return found
}

// judge compares what the container was told with who it is.
func judge(report *Report, limits []byte, limitsError error) {
	grant, granted := report.Env["HAMI_GRANT"]
	wrong := func(format string, values ...any) {
		report.Problems = append(report.Problems, fmt.Sprintf(format, values...))
	}
	report.Problems = []string{}
	if limitsError != nil && !granted {
		report.Status = "NONE"
		if !os.IsNotExist(limitsError) {
			wrong("%v", limitsError)
		}
		return
	}
	if report.Pod == "" || report.Container == "" {
		wrong("the manifest gives no POD_UID or no CONTAINER_NAME")
	}
	if expected := report.Pod + "/" + report.Container; grant != expected {
		wrong("HAMI_GRANT is %q, and this is %q", grant, expected)
	}
	var told struct {
		Owner     struct{ UID string }
		Container string
		Devices   []struct{ ID string }
	}
	if limitsError != nil {
		wrong("%v", limitsError)
	} else if err := json.Unmarshal(limits, &told); err != nil {
		wrong("%s: %v", limitsPath, err)
	} else {
		report.Limits = limits
		if told.Owner.UID != report.Pod {
			wrong("%s is of pod %s, and this is %s", limitsPath, told.Owner.UID, report.Pod)
		}
		if told.Container != report.Container {
			wrong("%s is of container %s, and this is %s", limitsPath, told.Container, report.Container)
		}
		if len(told.Devices) == 0 {
			wrong("%s names no device", limitsPath)
		}
	}
	report.Status = "MATCH"
	if len(report.Problems) > 0 {
		report.Status = "WRONG"
	}
}

func look(number int, brief bool) string {
	report := Report{Look: number, Env: environment(), UnixTime: float64(time.Now().UnixMicro()) / 1e6, Limits: json.RawMessage("null")}
	report.Pod, report.Container = report.Env["POD_UID"], report.Env["CONTAINER_NAME"]
	limits, limitsError := os.ReadFile(limitsPath)
	judge(&report, limits, limitsError)
	if !brief {
		report.Mounts, report.Devices = mounts(), devices()
		if preload, err := os.ReadFile("/etc/ld.so.preload"); err == nil {
			report.Preload = string(preload)
		}
	}
	line, err := json.Marshal(report)
	if err != nil {
		line = []byte(fmt.Sprintf(`{"status":"WRONG","problems":[%q]}`, err.Error()))
		report.Status = "WRONG"
	}
	fmt.Println(string(line))
	// The pod's status shows it once the container has ended; where there is no such file, nobody asked for it.
	if file, err := os.OpenFile("/dev/termination-log", os.O_WRONLY|os.O_TRUNC, 0); err == nil {
		fmt.Fprintln(file, report.Status, strings.Join(report.Problems, "; "))
		file.Close()
	}
	return report.Status
}

func main() {
	run := flag.Duration("run", 0, "end after this time with status 0 (default: wait for SIGTERM)")
	expect := flag.String("expect", "", "end at once with status 1 unless the first look says this (MATCH, NONE)")
	brief := flag.Bool("brief", false, "without mounts and devices: a short line for many pods")
	flag.Parse()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	number := 1
	if status := look(number, *brief); *expect != "" && status != *expect {
		os.Exit(1)
	}
	var over <-chan time.Time
	if *run > 0 {
		over = time.After(*run)
	}
	for {
		select {
		case <-over:
			os.Exit(0)
		case received := <-signals:
			if received != syscall.SIGHUP {
				os.Exit(0)
			}
			number++
			look(number, *brief)
		}
	}
}
