// Command cosi is the far end of the Omni interop tests: the signature library and the State server that Omni is made of.
//
//	cosi keys     prints service accounts that the library made, as JSON
//	cosi verify   verifies signatures: a JSON object a line on standard input, a line of answer each
//	cosi serve    a State server behind the signature check; prints its address and keys as JSON, then obeys
//	              standard input: drop, pause and resume (watches), stats
//
// It ends when its standard input does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/impl/inmem"
	"github.com/cosi-project/runtime/pkg/state/impl/namespaced"
	"github.com/cosi-project/runtime/pkg/state/protobuf/server"
	"github.com/siderolabs/go-api-signature/pkg/message"
	"github.com/siderolabs/go-api-signature/pkg/pgp"
	"github.com/siderolabs/go-api-signature/pkg/serviceaccount"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // Omni takes compressed requests.
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pgpcrypto "github.com/ProtonMail/gopenpgp/v3/crypto"
)

const providerID = "metal-1"

// account is a service account as the test reads it.
type account struct {
	Name        string `json:"name"`
	Key         string `json:"key"`
	Public      string `json:"public"`
	Fingerprint string `json:"fingerprint"`
	Lifetime    int64  `json:"lifetime"`
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func say(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		fail(err)
	}
	fmt.Printf("%s\n", line)
}

// makeKey makes a key the way the command line tools do, with the user ID of a provider's service account.
func makeKey(name string, lifetime time.Duration) (account, *pgp.Key) {
	comment := fmt.Sprintf("%s/%s", runtime.GOOS, runtime.GOARCH)
	mail := providerID + "@infra-provider.serviceaccount.omni.sidero.dev"
	key, err := pgp.GenerateKey(providerID, comment, mail, lifetime)
	if err != nil {
		fail(err)
	}
	encoded, err := serviceaccount.Encode(name, key)
	if err != nil {
		fail(err)
	}
	public, err := key.ArmorPublic()
	if err != nil {
		fail(err)
	}
	return account{name, encoded, public, key.Fingerprint(), int64(lifetime.Seconds())}, key
}

func publicKey(armored string) (*pgp.Key, error) {
	raw, err := pgpcrypto.NewKeyFromArmored(armored)
	if err != nil {
		return nil, err
	}
	return pgp.NewKey(raw)
}

func keys() {
	var made []account
	for name, lifetime := range map[string]time.Duration{
		"infra-provider:metal-1": 8760 * time.Hour,
		"metal-1":                time.Hour,
		"anything@else":          30 * 24 * time.Hour,
	} {
		one, _ := makeKey(name, lifetime)
		made = append(made, one)
	}
	say(made)
}

// verify answers a line a signature, which comes with its payload and its armored public key.
func verify() {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<20)
	for input.Scan() {
		var asked struct {
			Payload   string `json:"payload"`
			Signature []byte `json:"signature"`
			Public    string `json:"public"`
		}
		if err := json.Unmarshal(input.Bytes(), &asked); err != nil {
			fail(err)
		}
		err := func() error {
			key, err := publicKey(asked.Public)
			if err != nil {
				return err
			}
			return key.Verify([]byte(asked.Payload), asked.Signature)
		}()
		if err != nil {
			fmt.Printf("refused: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println("verified")
		}
	}
}

// gate is what every call passes: the signature check, and the switches of the test.
type gate struct {
	mutex       sync.Mutex
	keys        map[string]*pgp.Key
	paused      bool
	withoutNew  bool
	encodings   map[string]int
	calls       map[string]int
	connections map[net.Conn]struct{}
}

func (g *gate) check(ctx context.Context, method string) error {
	md, _ := metadata.FromIncomingContext(ctx)
	call := message.NewGRPC(md, method)
	signature, err := call.Signature()
	if err == nil {
		g.mutex.Lock()
		key, known := g.keys[signature.KeyFingerprint]
		g.mutex.Unlock()
		if !known {
			err = errors.New("unknown key")
		} else {
			err = call.VerifySignature(key)
		}
	}
	name := method[strings.LastIndexByte(method, '/')+1:]
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.calls[name]++
	if err != nil {
		log.Printf("%s: %v", method, err)
		return status.Error(codes.Unauthenticated, "invalid signature")
	}
	if g.withoutNew && strings.HasPrefix(name, "Teardown") {
		return status.Error(codes.Unimplemented, "unknown method "+name)
	}
	return nil
}

// handler lets gRPC through net/http beside pages, as Omni does.
func (g *gate) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
			fmt.Fprintln(w, "a page")
			return
		}
		g.mutex.Lock()
		paused := g.paused
		g.encodings[r.Header.Get("grpc-encoding")]++
		g.mutex.Unlock()
		if paused && strings.HasSuffix(r.URL.Path, "/Watch") {
			http.Error(w, "paused", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *gate) follow(conn net.Conn, state http.ConnState) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	switch state {
	case http.StateNew:
		g.connections[conn] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(g.connections, conn)
	}
}

func serve(withoutNew bool, history int, known string) {
	member, key := makeKey("infra-provider:"+providerID, time.Hour)
	stranger, _ := makeKey("infra-provider:"+providerID, time.Hour)
	g := &gate{
		keys:       map[string]*pgp.Key{key.Fingerprint(): key},
		withoutNew: withoutNew,
		encodings:  map[string]int{}, calls: map[string]int{}, connections: map[net.Conn]struct{}{},
	}
	if known != "" {
		armored, err := os.ReadFile(known)
		if err != nil {
			fail(err)
		}
		key, err := publicKey(string(armored))
		if err != nil {
			fail(err)
		}
		g.keys[key.Fingerprint()] = key
	}
	build := inmem.NewStateWithOptions(
		inmem.WithHistoryInitialCapacity(history), inmem.WithHistoryMaxCapacity(history), inmem.WithHistoryGap(1),
	)
	core := namespaced.NewState(func(ns string) state.CoreState { return build(ns) })
	const limit = 32 << 20
	rpc := grpc.NewServer(
		grpc.MaxRecvMsgSize(limit), grpc.MaxSendMsgSize(limit),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := g.check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := g.check(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	)
	v1alpha1.RegisterStateServer(rpc, server.NewState(core))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	web := http.Server{Handler: g.handler(rpc), Protocols: &protocols, ConnState: g.follow}
	say(map[string]any{"address": listener.Addr().String(), "member": member, "stranger": stranger})
	go func() { fail(web.Serve(listener)) }()

	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		g.mutex.Lock()
		answer := any("done")
		switch command := input.Text(); command {
		case "drop":
			for conn := range g.connections {
				_ = conn.Close()
			}
		case "pause":
			g.paused = true
		case "resume":
			g.paused = false
		case "stats":
			answer = map[string]any{"encodings": maps.Clone(g.encodings), "calls": maps.Clone(g.calls)}
		default:
			fail(fmt.Errorf("no command %q", command))
		}
		g.mutex.Unlock()
		say(answer)
	}
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("want keys, verify or serve"))
	}
	flags := flag.NewFlagSet("cosi", flag.ExitOnError)
	withoutNew := flags.Bool("without-teardown", false, "answer Teardown as an older server does")
	history := flags.Int("history", 1024, "events that each kind remembers")
	known := flags.String("known", "", "file of one more public key to accept")
	_ = flags.Parse(os.Args[2:])
	switch os.Args[1] {
	case "keys":
		keys()
	case "verify":
		verify()
	case "serve":
		serve(*withoutNew, *history, *known)
	default:
		fail(fmt.Errorf("no mode %q", os.Args[1]))
	}
}
