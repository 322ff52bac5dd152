// Command tunnel is the far end of the interop test: the agent's tunnel library in Go with the
// agent's own messages, in either role.
//
//	tunnel agent [-no-flow-control] ADDRESS MACHINE-ID   dials a provider and answers the five calls
//	tunnel provider [-no-flow-control]                   listens, and makes the five calls to whoever dials in
//
// It reports on standard output, a line each, answers a line on standard input with the number of calls so far, and ends
// when its standard input does.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fullstorydev/grpchan"
	"github.com/jhump/grpctunnel"
	"github.com/jhump/grpctunnel/tunnelpb"
	agentpb "github.com/siderolabs/talos-metal-agent/api/agent"
	"github.com/siderolabs/talos-metal-agent/pkg/constants"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Longer than four windows, so that it needs credit.
const long = 300_000

var (
	output sync.Mutex
	// Calls answered as agent, or made as provider.
	calls atomic.Int64
)

func say(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Printf(format+"\n", args...)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// pad makes a message long without meaning: a field that nobody knows.
func pad[T proto.Message](message T) T {
	raw := protowire.AppendTag(nil, 1000, protowire.BytesType)
	message.ProtoReflect().SetUnknown(protowire.AppendBytes(raw, make([]byte, long)))
	return message
}

// far is an agent whose answers the test knows.
type far struct {
	agentpb.UnimplementedAgentServiceServer
}

func (far) Hello(context.Context, *agentpb.HelloRequest) (*agentpb.HelloResponse, error) {
	say("hello")
	return pad(&agentpb.HelloResponse{}), nil
}

func (far) GetPowerManagement(_ context.Context, request *agentpb.GetPowerManagementRequest) (*agentpb.GetPowerManagementResponse, error) {
	say("get power management")
	return &agentpb.GetPowerManagementResponse{Ipmi: &agentpb.GetPowerManagementResponse_IPMI{
		Address: "10.1.2.3", Port: 6623, UserExists: request.GetIpmi().GetCheckUsername() == "",
	}}, nil
}

func (far) SetPowerManagement(_ context.Context, request *agentpb.SetPowerManagementRequest) (*agentpb.SetPowerManagementResponse, error) {
	user := request.GetIpmi().GetUsername()
	if user == "nobody" {
		return nil, errors.New("failed to set up IPMI user: no slot available for user")
	}
	say("set power management %s %d", user, len(request.GetIpmi().GetPassword()))
	return &agentpb.SetPowerManagementResponse{}, nil
}

func (far) Reboot(context.Context, *agentpb.RebootRequest) (*agentpb.RebootResponse, error) {
	say("reboot")
	return &agentpb.RebootResponse{}, nil
}

func (far) WipeDisks(ctx context.Context, request *agentpb.WipeDisksRequest) (*agentpb.WipeDisksResponse, error) {
	if !request.Zeroes {
		return nil, status.Error(codes.FailedPrecondition, "failed to wipe disks: device is mounted")
	}
	say("wiping with zeroes")
	<-ctx.Done()
	say("wiping ended: %v", ctx.Err())
	return nil, ctx.Err()
}

func agent(options []grpctunnel.TunnelOption, address, id string) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(err)
	}
	server := grpctunnel.NewReverseTunnelServer(tunnelpb.NewTunnelServiceClient(conn), options...)
	counted := grpchan.WithInterceptor(server,
		func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			calls.Add(1)
			return handle(ctx, request)
		}, nil)
	agentpb.RegisterAgentServiceServer(counted, far{})
	ctx := metadata.AppendToOutgoingContext(context.Background(), constants.MachineIDMetadataKey, id)
	started, err := server.Serve(ctx)
	say("ended: started=%t code=%s", started, status.Code(err))
}

func provider(noFlowControl bool) {
	handler := grpctunnel.NewTunnelServiceHandler(grpctunnel.TunnelServiceHandlerOptions{
		DisableFlowControl: noFlowControl,
		OnReverseTunnelOpen: func(channel grpctunnel.TunnelChannel) {
			headers, _ := metadata.FromIncomingContext(channel.Context())
			say("opened %s", strings.Join(headers.Get(constants.MachineIDMetadataKey), ","))
			go drive(channel)
		},
		OnReverseTunnelClose: func(grpctunnel.TunnelChannel) { say("closed") },
	})
	server := grpc.NewServer()
	tunnelpb.RegisterTunnelServiceServer(server, handler.Service())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	say("listening %s", listener.Addr())
	fail(server.Serve(listener))
}

// called makes one call, which may take so long.
func called[Request, Response any](call func(context.Context, Request, ...grpc.CallOption) (Response, error), request Request,
	timeout time.Duration,
) (Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	calls.Add(1)
	return call(ctx, request)
}

// drive makes every call, in an order that the test knows.
func drive(channel grpctunnel.TunnelChannel) {
	agent := agentpb.NewAgentServiceClient(channel)
	report := func(what string, err error) { say("%s: %s %q", what, status.Code(err), status.Convert(err).Message()) }
	const patient = 20 * time.Second

	var all sync.WaitGroup
	errs := make([]error, 100)
	for i := range errs {
		all.Go(func() { _, errs[i] = called(agent.Hello, pad(&agentpb.HelloRequest{}), patient) })
	}
	all.Wait()
	report("hundred long hellos", errors.Join(errs...))

	got, err := called(agent.GetPowerManagement, &agentpb.GetPowerManagementRequest{
		Ipmi: &agentpb.GetPowerManagementRequest_IPMI{CheckUsername: "ADMIN"},
	}, patient)
	report("get", err)
	say("ipmi %s %d %t", got.GetIpmi().GetAddress(), got.GetIpmi().GetPort(), got.GetIpmi().GetUserExists())

	account := func(user, password string) *agentpb.SetPowerManagementRequest {
		return &agentpb.SetPowerManagementRequest{Ipmi: &agentpb.SetPowerManagementRequest_IPMI{Username: user, Password: password}}
	}
	_, err = called(agent.SetPowerManagement, account("talos-agent", "0123456789abcdef"), patient)
	report("set", err)
	_, err = called(agent.SetPowerManagement, account("nobody", "x"), patient)
	report("set nobody", err)
	_, err = called(agent.WipeDisks, &agentpb.WipeDisksRequest{}, 300*time.Millisecond)
	report("wipe that waits", err)
	_, err = called(agent.Hello, &agentpb.HelloRequest{}, patient)
	report("hello after it", err)
	_, err = called(agent.WipeDisks, &agentpb.WipeDisksRequest{Zeroes: true}, patient)
	report("wipe that panics", err)
	_, err = called(agent.Reboot, &agentpb.RebootRequest{}, patient)
	report("reboot", err)
	for _, method := range []string{"/management.AgentService/Nope", "Hello", ""} {
		calls.Add(1)
		report(fmt.Sprintf("method %q", method),
			channel.Invoke(context.Background(), method, &agentpb.HelloRequest{}, &agentpb.HelloResponse{}))
	}
	say("done")
}

func main() {
	mode := flag.NewFlagSet("tunnel", flag.ExitOnError)
	noFlowControl := mode.Bool("no-flow-control", false, "offer revision zero only")
	if len(os.Args) < 2 {
		fail(errors.New("want agent or provider"))
	}
	if err := mode.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	go func() {
		for input := bufio.NewScanner(os.Stdin); input.Scan(); {
			say("%d calls", calls.Load())
		}
		os.Exit(0)
	}()
	switch os.Args[1] {
	case "agent":
		var options []grpctunnel.TunnelOption
		if *noFlowControl {
			options = append(options, grpctunnel.WithDisableFlowControl())
		}
		agent(options, mode.Arg(0), mode.Arg(1))
	case "provider":
		provider(*noFlowControl)
	default:
		fail(errors.New("want agent or provider"))
	}
}
