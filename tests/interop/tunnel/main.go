// Command tunnel is the far end of the interop test: the agent's tunnel library in Go, in either role.
//
//	tunnel agent [-no-flow-control] ADDRESS MACHINE-ID   dials a provider and answers the five calls
//	tunnel provider [-no-flow-control]                   listens, and makes the five calls to whoever dials in
//
// It reports on standard output, a line each, and ends when its standard input does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/bufbuild/protocompile"
	"github.com/jhump/grpctunnel"
	"github.com/jhump/grpctunnel/tunnelpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// The agent's service as its contract names it.
const schema = `
syntax = "proto3";
package management;

message HelloRequest {}
message HelloResponse {}
message GetPowerManagementRequest {
  message IPMI { string check_username = 1; }
  message API {}
  IPMI ipmi = 1;
  API api = 2;
}
message GetPowerManagementResponse {
  message IPMI { string address = 1; uint32 port = 2; bool user_exists = 3; }
  message API {}
  IPMI ipmi = 1;
  API api = 2;
}
message SetPowerManagementRequest {
  message IPMI { string username = 1; string password = 2; }
  message API {}
  IPMI ipmi = 1;
  API api = 2;
}
message SetPowerManagementResponse {}
message RebootRequest {}
message RebootResponse {}
message WipeDisksRequest { bool zeroes = 1; }
message WipeDisksResponse {}

service AgentService {
  rpc Hello(HelloRequest) returns (HelloResponse);
  rpc GetPowerManagement(GetPowerManagementRequest) returns (GetPowerManagementResponse);
  rpc SetPowerManagement(SetPowerManagementRequest) returns (SetPowerManagementResponse);
  rpc Reboot(RebootRequest) returns (RebootResponse);
  rpc WipeDisks(WipeDisksRequest) returns (WipeDisksResponse);
}
`

// Longer than four windows, so that it needs credit.
const long = 300_000

var output sync.Mutex

func say(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Printf(format+"\n", args...)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func service() protoreflect.ServiceDescriptor {
	compiler := protocompile.Compiler{
		Resolver: &protocompile.SourceResolver{
			Accessor: protocompile.SourceAccessorFromMap(map[string]string{"agent.proto": schema}),
		},
	}
	files, err := compiler.Compile(context.Background(), "agent.proto")
	if err != nil {
		fail(err)
	}
	return files[0].Services().ByName("AgentService")
}

// field returns message.ipmi.name or message.name; the zero value if ipmi is absent.
func field(message *dynamicpb.Message, path ...string) protoreflect.Value {
	var current protoreflect.Message = message
	for _, name := range path[:len(path)-1] {
		current = current.Get(current.Descriptor().Fields().ByName(protoreflect.Name(name))).Message()
	}
	return current.Get(current.Descriptor().Fields().ByName(protoreflect.Name(path[len(path)-1])))
}

func set(message *dynamicpb.Message, value any, path ...string) {
	var current protoreflect.Message = message
	for _, name := range path[:len(path)-1] {
		current = current.Mutable(current.Descriptor().Fields().ByName(protoreflect.Name(name))).Message()
	}
	current.Set(current.Descriptor().Fields().ByName(protoreflect.Name(path[len(path)-1])), protoreflect.ValueOf(value))
}

// pad makes a message long without meaning: a field that nobody knows.
func pad(message *dynamicpb.Message) {
	raw := protowire.AppendTag(nil, 1000, protowire.BytesType)
	message.SetUnknown(protowire.AppendBytes(raw, make([]byte, long)))
}

func answer(ctx context.Context, name string, request, response *dynamicpb.Message) error {
	switch name {
	case "Hello":
		say("hello")
		pad(response)
	case "GetPowerManagement":
		say("get power management")
		set(response, "10.1.2.3", "ipmi", "address")
		set(response, uint32(6623), "ipmi", "port")
		set(response, field(request, "ipmi", "check_username").String() == "", "ipmi", "user_exists")
	case "SetPowerManagement":
		user, password := field(request, "ipmi", "username").String(), field(request, "ipmi", "password").String()
		if user == "nobody" {
			return errors.New("failed to set up IPMI user: no slot available for user")
		}
		say("set power management %s %d", user, len(password))
	case "Reboot":
		say("reboot")
	case "WipeDisks":
		if field(request, "zeroes").Bool() {
			say("wiping with zeroes")
			<-ctx.Done()
			say("wiping ended: %v", ctx.Err())
			return ctx.Err()
		}
		return status.Error(codes.FailedPrecondition, "failed to wipe disks: device is mounted")
	}
	return nil
}

// describe makes the service's description by hand, with messages made at run time.
func describe(service protoreflect.ServiceDescriptor) *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: string(service.FullName()), HandlerType: (*any)(nil)}
	for i := range service.Methods().Len() {
		method := service.Methods().Get(i)
		desc.Methods = append(desc.Methods, grpc.MethodDesc{
			MethodName: string(method.Name()),
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				request := dynamicpb.NewMessage(method.Input())
				if err := decode(request); err != nil {
					return nil, err
				}
				response := dynamicpb.NewMessage(method.Output())
				return response, answer(ctx, string(method.Name()), request, response)
			},
		})
	}
	return desc
}

func agent(options []grpctunnel.TunnelOption, address, id string) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(err)
	}
	server := grpctunnel.NewReverseTunnelServer(tunnelpb.NewTunnelServiceClient(conn), options...)
	server.RegisterService(describe(service()), struct{}{})
	ctx := metadata.AppendToOutgoingContext(context.Background(), "machine-id", id)
	started, err := server.Serve(ctx)
	say("ended: started=%t code=%s", started, status.Code(err))
}

func provider(noFlowControl bool) {
	svc := service()
	handler := grpctunnel.NewTunnelServiceHandler(grpctunnel.TunnelServiceHandlerOptions{
		DisableFlowControl: noFlowControl,
		OnReverseTunnelOpen: func(channel grpctunnel.TunnelChannel) {
			headers, _ := metadata.FromIncomingContext(channel.Context())
			say("opened %s", strings.Join(headers.Get("machine-id"), ","))
			go drive(svc, channel)
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

// drive makes every call, in an order that the test knows.
func drive(svc protoreflect.ServiceDescriptor, channel grpctunnel.TunnelChannel) {
	call := func(timeout time.Duration, name string, fill func(*dynamicpb.Message)) (*dynamicpb.Message, error) {
		method := svc.Methods().ByName(protoreflect.Name(name))
		request, response := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
		if fill != nil {
			fill(request)
		}
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		return response, channel.Invoke(ctx, "/management.AgentService/"+name, request, response)
	}
	report := func(what string, err error) { say("%s: %s %q", what, status.Code(err), status.Convert(err).Message()) }
	const patient = 20 * time.Second

	var all sync.WaitGroup
	errs := make([]error, 100)
	for i := range errs {
		all.Go(func() { _, errs[i] = call(patient, "Hello", pad) })
	}
	all.Wait()
	report("hundred long hellos", errors.Join(errs...))

	got, err := call(patient, "GetPowerManagement", func(request *dynamicpb.Message) {
		set(request, "ADMIN", "ipmi", "check_username")
	})
	report("get", err)
	say("ipmi %s %d %t", field(got, "ipmi", "address").String(), field(got, "ipmi", "port").Uint(),
		field(got, "ipmi", "user_exists").Bool())

	account := func(user, password string) func(*dynamicpb.Message) {
		return func(request *dynamicpb.Message) {
			set(request, user, "ipmi", "username")
			set(request, password, "ipmi", "password")
		}
	}
	_, err = call(patient, "SetPowerManagement", account("talos-agent", "0123456789abcdef"))
	report("set", err)
	_, err = call(patient, "SetPowerManagement", account("nobody", "x"))
	report("set nobody", err)
	_, err = call(300*time.Millisecond, "WipeDisks", nil)
	report("wipe that waits", err)
	_, err = call(patient, "Hello", nil)
	report("hello after it", err)
	_, err = call(patient, "WipeDisks", func(request *dynamicpb.Message) { set(request, true, "zeroes") })
	report("wipe that panics", err)
	_, err = call(patient, "Reboot", nil)
	report("reboot", err)
	var empty proto.Message = dynamicpb.NewMessage(svc.Methods().ByName("Hello").Input())
	for _, method := range []string{"/management.AgentService/Nope", "Hello", ""} {
		report(fmt.Sprintf("method %q", method), channel.Invoke(context.Background(), method, empty, empty))
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
		_, _ = io.Copy(io.Discard, os.Stdin)
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
