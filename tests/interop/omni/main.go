// Command omni is a dynamic provider made of the libraries that the official providers are made of: requests signed by
// go-api-signature, COSI's client and its controller runtime. It does everything that the client can do once, then turns
// every machine request into a status, and prints what it has done, a line each.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/controller"
	"github.com/cosi-project/runtime/pkg/controller/generic/qtransform"
	"github.com/cosi-project/runtime/pkg/controller/runtime"
	"github.com/cosi-project/runtime/pkg/controller/runtime/options"
	"github.com/cosi-project/runtime/pkg/resource"
	"github.com/cosi-project/runtime/pkg/resource/meta"
	"github.com/cosi-project/runtime/pkg/resource/protobuf"
	"github.com/cosi-project/runtime/pkg/resource/typed"
	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/protobuf/client"
	"github.com/siderolabs/go-api-signature/pkg/client/interceptor"
	"github.com/siderolabs/go-api-signature/pkg/serviceaccount"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
)

const (
	shared = "infra-provider"
	// The UUID of the one machine that this provider has.
	machine      = "4c4c4544-0044-4810-8031-b4c04f333132"
	labelRequest = "omni.sidero.dev/machine-request"

	stageProvisioned = 2
)

type requestSpec struct {
	TalosVersion string `protobuf:"1" yaml:"talosversion"`
	ProviderData string `protobuf:"6" yaml:"providerdata"`
}

func (spec requestSpec) DeepCopy() requestSpec { return spec }

type statusSpec struct {
	ID     string `protobuf:"1" yaml:"id"`
	Stage  uint32 `protobuf:"2" yaml:"stage"`
	Error  string `protobuf:"3" yaml:"error"`
	Status string `protobuf:"4" yaml:"status"`
}

func (spec statusSpec) DeepCopy() statusSpec { return spec }

type patchSpec struct {
	Data string `protobuf:"1" yaml:"data"`
}

func (spec patchSpec) DeepCopy() patchSpec { return spec }

type requestExtension struct{}

func (requestExtension) ResourceDefinition() meta.ResourceDefinitionSpec {
	return meta.ResourceDefinitionSpec{Type: "MachineRequests.omni.sidero.dev", DefaultNamespace: shared}
}

type statusExtension struct{}

func (statusExtension) ResourceDefinition() meta.ResourceDefinitionSpec {
	return meta.ResourceDefinitionSpec{Type: "MachineRequestStatuses.omni.sidero.dev", DefaultNamespace: shared}
}

type patchExtension struct{}

func (patchExtension) ResourceDefinition() meta.ResourceDefinitionSpec {
	return meta.ResourceDefinitionSpec{Type: "ConfigPatchRequests.omni.sidero.dev", DefaultNamespace: shared}
}

type (
	request = typed.Resource[requestSpec, requestExtension]
	status  = typed.Resource[statusSpec, statusExtension]
	patch   = typed.Resource[patchSpec, patchExtension]
)

func metadata(definition meta.ResourceDefinitionProvider, id string) resource.Metadata {
	spec := definition.ResourceDefinition()

	return resource.NewMetadata(spec.DefaultNamespace, spec.Type, id, resource.VersionUndefined)
}

func newRequest(id string) *request {
	return typed.NewResource[requestSpec, requestExtension](metadata(&request{}, id), requestSpec{})
}

func newStatus(id string) *status {
	return typed.NewResource[statusSpec, statusExtension](metadata(&status{}, id), statusSpec{})
}

func newPatch(id string) *patch {
	return typed.NewResource[patchSpec, patchExtension](metadata(&patch{}, id), patchSpec{})
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()

	if err := run(ctx, os.Args[1], os.Args[2]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address, provider string) error {
	_, key := serviceaccount.GetFromEnv()
	signer := interceptor.New(interceptor.Options{ServiceAccountBase64: key})

	conn, err := grpc.NewClient(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(signer.Unary()),
		grpc.WithStreamInterceptor(signer.Stream()),
		grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)),
	)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck

	if err = errors.Join(
		protobuf.RegisterDynamic("MachineRequests.omni.sidero.dev", &request{}),
		protobuf.RegisterDynamic("MachineRequestStatuses.omni.sidero.dev", &status{}),
		protobuf.RegisterDynamic("ConfigPatchRequests.omni.sidero.dev", &patch{}),
	); err != nil {
		return err
	}

	st := state.WrapCore(client.NewAdapter(v1alpha1.NewStateClient(conn)))

	if err = everyCall(ctx, st); err != nil {
		return fmt.Errorf("state: %w", err)
	}

	return provision(ctx, st, provider)
}

func check(what string, holds bool) error {
	if !holds {
		return fmt.Errorf("%s does not hold", what)
	}

	return nil
}

// everyCall does with a config patch request what can be done with a resource.
func everyCall(ctx context.Context, st state.State) error {
	definitions, err := st.List(ctx, resource.NewMetadata(meta.NamespaceName, meta.ResourceDefinitionType, "", resource.VersionUndefined))
	if err != nil {
		return err
	}

	events := make(chan []state.Event)
	kind := newPatch("").Metadata()

	if err = st.WatchKindAggregated(ctx, kind, events, state.WithBootstrapContents(true), state.WithBootstrapBookmark(true)); err != nil {
		return err
	}

	if err = st.Create(ctx, newPatch("a")); err != nil {
		return err
	}

	again := st.Create(ctx, newPatch("a"))

	created, err := safe.StateGetByID[*patch](ctx, st, "a")
	if err != nil {
		return err
	}

	updated, err := safe.StateUpdateWithConflicts(ctx, st, created.Metadata(), func(res *patch) error {
		res.TypedSpec().Data = "machine: {}"

		return nil
	})
	if err != nil {
		return err
	}

	created.TypedSpec().Data = "late"
	late := st.Update(ctx, created)
	foreign := st.Destroy(ctx, created.Metadata(), state.WithDestroyOwner("somebody"))

	if err = st.AddFinalizer(ctx, updated.Metadata(), "held"); err != nil {
		return err
	}

	held := st.Destroy(ctx, updated.Metadata())

	ready, err := st.Teardown(ctx, updated.Metadata())
	if err != nil {
		return err
	}

	torn, err := safe.StateWatchFor[*patch](ctx, st, updated.Metadata(), state.WithPhases(resource.PhaseTearingDown))
	if err != nil {
		return err
	}

	stale := st.Update(ctx, torn, state.WithExpectedPhase(resource.PhaseRunning))

	if err = st.RemoveFinalizer(ctx, updated.Metadata(), "held"); err != nil {
		return err
	}

	if err = st.TeardownAndDestroy(ctx, updated.Metadata()); err != nil {
		return err
	}

	_, gone := st.Get(ctx, updated.Metadata())
	provided := st.Create(ctx, newRequest("mine"))

	if err = errors.Join(
		check("definitions are listed", len(definitions.Items) > 20),
		check("a second create conflicts", state.IsConflictError(again)),
		check("a late update conflicts", state.IsConflictError(late)),
		check("an update is stored", updated.TypedSpec().Data == "machine: {}" && updated.Metadata().Version().String() == "2"),
		check("another owner is refused", state.IsOwnerConflictError(foreign)),
		check("a finalizer holds", state.IsConflictError(held) && !ready),
		check("a phase is expected", state.IsPhaseConflictError(stale)),
		check("what is destroyed is gone", state.IsNotFoundError(gone)),
		check("requests are not made by providers", provided != nil),
		check("the label is set", updated.Metadata().Labels().Raw()["omni.sidero.dev/infra-provider-id"] != ""),
	); err != nil {
		return err
	}

	seen := []string{}
	for len(seen) == 0 || seen[len(seen)-1] != state.Destroyed.String() {
		select {
		case batch := <-events:
			for _, event := range batch {
				seen = append(seen, event.Type.String())
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}

	fmt.Println("state:", strings.Join(seen, " "))

	return nil
}

// provision makes a status of each request, with a config patch, and takes both down with it.
func provision(ctx context.Context, st state.State, provider string) error {
	rt, err := runtime.NewRuntime(st, zap.NewNop(), options.WithCachedResource(shared, "MachineRequestStatuses.omni.sidero.dev"))
	if err != nil {
		return err
	}

	provisioner := qtransform.NewQController(
		qtransform.Settings[*request, *status]{
			Name:              provider + ".ProvisionController",
			MapMetadataFunc:   func(in *request) *status { return newStatus(in.Metadata().ID()) },
			UnmapMetadataFunc: func(out *status) *request { return newRequest(out.Metadata().ID()) },
			TransformExtraOutputFunc: func(ctx context.Context, rw controller.ReaderWriter, _ *zap.Logger, in *request, out *status) error {
				for key, value := range in.Metadata().Labels().Raw() {
					out.Metadata().Labels().Set(key, value)
				}

				out.TypedSpec().ID = machine
				out.TypedSpec().Stage = stageProvisioned
				out.TypedSpec().Status = "Provision Complete"

				fmt.Println("provisioned", in.Metadata().ID(), in.TypedSpec().TalosVersion)

				return safe.WriterModify(ctx, rw, newPatch(in.Metadata().ID()+"-hostname"), func(res *patch) error {
					res.Metadata().Labels().Set(labelRequest, in.Metadata().ID())
					res.TypedSpec().Data = "machine: {}"

					return nil
				})
			},
			FinalizerRemovalExtraOutputFunc: func(ctx context.Context, rw controller.ReaderWriter, _ *zap.Logger, in *request) error {
				id := newPatch(in.Metadata().ID() + "-hostname").Metadata()

				ready, err := rw.Teardown(ctx, id)
				if state.IsNotFoundError(err) {
					fmt.Println("released", in.Metadata().ID())

					return nil
				}

				if err != nil {
					return err
				}

				if !ready {
					return controller.NewRequeueInterval(50 * time.Millisecond)
				}

				if err = rw.Destroy(ctx, id); err != nil {
					return err
				}

				fmt.Println("released", in.Metadata().ID())

				return nil
			},
		},
		qtransform.WithExtraOutputs(controller.Output{Type: "ConfigPatchRequests.omni.sidero.dev", Kind: controller.OutputShared}),
	)

	if err = rt.RegisterQController(provisioner); err != nil {
		return err
	}

	fmt.Println("provisioning")

	return rt.Run(ctx)
}
