// Command omni is an infra provider made of Omni's official client library.
//
//	omni calls ENDPOINT PROVIDER     makes every call that the library can make of a provider, and checks each answer
//	omni dynamic ENDPOINT PROVIDER   makes machines on request, by the library's own controllers
//	omni static ENDPOINT PROVIDER    answers for machines that join by themselves, as the bare-metal provider does
//
// It says what it does on standard output, a line each; "counts" on standard input is answered with the calls so far.
// The key is in the environment.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/siderolabs/go-api-signature/pkg/serviceaccount"
	"github.com/siderolabs/omni/client/pkg/client"
	"github.com/siderolabs/omni/client/pkg/client/omni"
	"google.golang.org/grpc"
)

// The UUID of the one machine that the dynamic provider has.
const machine = "4c4c4544-0044-4810-8031-b4c04f333132"

var output sync.Mutex

func say(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Printf(format+"\n", args...)
}

// counter counts calls by method, and knows the connection that they go through.
type counter struct {
	mutex sync.Mutex
	calls map[string]int
	conn  *grpc.ClientConn
}

func (c *counter) add(method string, conn *grpc.ClientConn) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.calls[path.Base(method)]++
	c.conn = conn
}

// connection is that of the last call, for calls that the client has no words for.
func (c *counter) connection() *grpc.ClientConn {
	c.mutex.Lock()
	defer c.mutex.Unlock()

	return c.conn
}

func (c *counter) String() string {
	c.mutex.Lock()
	defer c.mutex.Unlock()

	parts := []string{}
	for _, method := range slices.Sorted(maps.Keys(c.calls)) {
		parts = append(parts, fmt.Sprintf("%s=%d", method, c.calls[method]))
	}

	return strings.Join(parts, " ")
}

func (c *counter) options() client.Option {
	return client.WithGrpcOpts(
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
			invoke grpc.UnaryInvoker, options ...grpc.CallOption,
		) error {
			c.add(method, conn)

			return invoke(ctx, method, request, reply, conn, options...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
			open grpc.Streamer, options ...grpc.CallOption,
		) (grpc.ClientStream, error) {
			c.add(method, conn)

			return open(ctx, desc, conn, method, options...)
		}),
	)
}

func main() {
	// The parent closes it when the test is over.
	ctx, cancel := context.WithCancel(context.Background())
	count := &counter{calls: map[string]int{}}

	go func() {
		defer cancel()

		for input := bufio.NewScanner(os.Stdin); input.Scan(); {
			say("%s", count)
		}
	}()

	if err := run(ctx, count, os.Args[1], os.Args[2], os.Args[3]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		say("failed: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1) //nolint:gocritic
	}
}

func run(ctx context.Context, count *counter, role, endpoint, provider string) error {
	_, key := serviceaccount.GetFromEnv()
	options := []client.Option{
		client.WithServiceAccount(key),
		client.WithOmniClientOptions(omni.WithProviderID(provider)),
		count.options(),
	}

	if role == "dynamic" {
		return dynamic(ctx, endpoint, provider, options)
	}

	connected, err := client.New(endpoint, options...)
	if err != nil {
		return err
	}
	defer connected.Close() //nolint:errcheck

	switch role {
	case "calls":
		if err = calls(ctx, connected, count, provider); err != nil {
			return err
		}

		<-ctx.Done()

		return nil
	case "static":
		return static(ctx, connected.Omni().State(), provider)
	default:
		return fmt.Errorf("no role %q", role)
	}
}
