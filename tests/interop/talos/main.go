// Command talos stands in for Talos under the official metal agent: it serves the machine API that the agent asks, runs
// the agent as a service, and starts it again when it ends.
//
//	talos AGENT ROOT MACHINE-ID PROVIDER [AGENT-FLAG...]
//
// AGENT is the agent's program, which must be static; it runs with ROOT as its root directory, so that it finds the
// machine API where Talos has it, and no hardware. That takes root. What the agent asks for is said on standard output, a line each. The
// program ends, and the agent with it, when its standard input does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/impl/inmem"
	"github.com/cosi-project/runtime/pkg/state/impl/namespaced"
	"github.com/cosi-project/runtime/pkg/state/protobuf/server"
	"github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/api/storage"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/resources/block"
	"github.com/siderolabs/talos/pkg/machinery/resources/hardware"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Talos waits five seconds.
const restartDelay = 50 * time.Millisecond

var output sync.Mutex

func say(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Printf(format+"\n", args...)
}

type machined struct {
	machine.UnimplementedMachineServiceServer
	storage.UnimplementedStorageServiceServer
}

func (machined) Version(context.Context, *emptypb.Empty) (*machine.VersionResponse, error) {
	return &machine.VersionResponse{Messages: []*machine.Version{{Version: &machine.VersionInfo{Tag: "v1.13.6"}}}}, nil
}

func (machined) Reboot(_ context.Context, request *machine.RebootRequest) (*machine.RebootResponse, error) {
	say("reboot %s", request.Mode)

	return &machine.RebootResponse{Messages: []*machine.Reboot{{}}}, nil
}

func (machined) BlockDeviceWipe(_ context.Context, request *storage.BlockDeviceWipeRequest) (*storage.BlockDeviceWipeResponse, error) {
	devices := []string{}
	for _, device := range request.Devices {
		devices = append(devices, fmt.Sprintf("%s:%s", device.Device, device.Method))
	}

	say("wipe %s", strings.Join(devices, " "))

	return &storage.BlockDeviceWipeResponse{Messages: []*storage.BlockDeviceWipe{{}}}, nil
}

// hardwareOf is a machine with two disks that can be written, a CD-ROM drive and a disk that cannot.
func hardwareOf(ctx context.Context, id string) (state.State, error) {
	st := state.WrapCore(namespaced.NewState(inmem.Build))
	system := hardware.NewSystemInformation(hardware.SystemInformationID)
	system.TypedSpec().UUID = id

	errs := []error{st.Create(ctx, system)}

	for name, spec := range map[string]block.DiskSpec{
		"sda":     {DevPath: "/dev/sda", Size: 1 << 30},
		"nvme0n1": {DevPath: "/dev/nvme0n1", Size: 1 << 30},
		"sr0":     {DevPath: "/dev/sr0", CDROM: true},
		"sdb":     {DevPath: "/dev/sdb", Readonly: true},
	} {
		disk := block.NewDisk(block.NamespaceName, name)
		*disk.TypedSpec() = spec
		errs = append(errs, st.Create(ctx, disk))
	}

	return st, errors.Join(errs...)
}

func run(program, root, id, provider string, flags []string) error {
	ctx, cancel := context.WithCancel(context.Background())

	go func() {
		defer cancel()

		_, _ = io.Copy(io.Discard, os.Stdin)
	}()

	st, err := hardwareOf(ctx, id)
	if err != nil {
		return err
	}

	socket := filepath.Join(root, constants.MachineSocketPath)
	if err = os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}

	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}

	serve := grpc.NewServer()
	machine.RegisterMachineServiceServer(serve, machined{})
	storage.RegisterStorageServiceServer(serve, machined{})
	v1alpha1.RegisterStateServer(serve, server.NewState(st))

	go func() { _ = serve.Serve(listener) }()
	defer serve.Stop()

	// The agent takes its address, and whether it runs in test mode, from the kernel's command line or from flags.
	if err = os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
		return err
	}

	if err = os.WriteFile(filepath.Join(root, "proc/cmdline"), []byte("metal.provider.address="+provider+"\n"), 0o644); err != nil {
		return err
	}

	for ctx.Err() == nil {
		code, err := once(ctx, program, root, flags)
		if err != nil {
			return err
		}

		say("agent ended with %d", code)

		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
	}

	return nil
}

// once runs the agent until it ends; its status, or why it cannot be run.
func once(ctx context.Context, program, root string, flags []string) (int, error) {
	if err := copyFile(filepath.Join(root, "talos-metal-agent"), program); err != nil {
		return 0, err
	}

	agent := exec.CommandContext(ctx, "/talos-metal-agent", flags...)
	agent.Dir = "/"
	agent.Stderr = os.Stderr
	agent.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Pdeathsig: syscall.SIGKILL}

	err := agent.Run()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) && ctx.Err() == nil {
		return 0, err
	}

	return agent.ProcessState.ExitCode(), nil
}

func copyFile(to, from string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}

	octets, err := os.ReadFile(from)
	if err != nil {
		return err
	}

	return os.WriteFile(to, octets, 0o755)
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		say("failed: %s", err)
		os.Exit(1)
	}
}
