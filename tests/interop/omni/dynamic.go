package main

import (
	"context"
	"errors"
	"time"

	"github.com/cosi-project/runtime/pkg/resource"
	"github.com/cosi-project/runtime/pkg/resource/meta"
	"github.com/cosi-project/runtime/pkg/resource/protobuf"
	"github.com/cosi-project/runtime/pkg/resource/typed"
	"github.com/siderolabs/omni/client/api/omni/specs"
	"github.com/siderolabs/omni/client/pkg/client"
	"github.com/siderolabs/omni/client/pkg/infra"
	"github.com/siderolabs/omni/client/pkg/infra/provision"
	infrares "github.com/siderolabs/omni/client/pkg/omni/resources/infra"
	"go.uber.org/zap"
)

// owner is the provider that private types are named after.
var owner string

// vmSpec is what the provider keeps of a machine; it borrows a message that has a status and an ID.
type vmSpec = protobuf.ResourceSpec[specs.MachineRequestStatusSpec, *specs.MachineRequestStatusSpec]

type vmExtension struct{}

func (vmExtension) ResourceDefinition() meta.ResourceDefinitionSpec {
	return meta.ResourceDefinitionSpec{
		Type:             infra.ResourceType("VM", owner),
		DefaultNamespace: infra.ResourceNamespace(owner),
	}
}

type vm = typed.Resource[vmSpec, vmExtension]

// maker makes machines out of nothing, in three steps, the last of which has to be tried twice.
type maker struct {
	tries map[resource.ID]int
}

func (m *maker) ProvisionSteps() []provision.Step[*vm] {
	return []provision.Step[*vm]{
		provision.NewStep("schematic", func(ctx context.Context, logger *zap.Logger, pctx provision.Context[*vm]) error {
			schematic, err := pctx.GenerateSchematicID(ctx, logger, provision.WithExtraKernelArgs("console=ttyS0"))
			if err != nil {
				say("schematic: %s", err)

				return err
			}

			pctx.State.TypedSpec().Value.Status = schematic
			say("schematic of %d", len(schematic))

			return nil
		}),
		provision.NewStep("patch", func(ctx context.Context, _ *zap.Logger, pctx provision.Context[*vm]) error {
			return pctx.CreateConfigPatch(ctx, pctx.GetRequestID()+"-hostname", []byte("machine: {}"))
		}),
		provision.NewStep("boot", func(_ context.Context, _ *zap.Logger, pctx provision.Context[*vm]) error {
			m.tries[pctx.GetRequestID()]++
			if m.tries[pctx.GetRequestID()] == 1 {
				return provision.NewRetryErrorf(10*time.Millisecond, "no host has room yet")
			}

			pctx.SetMachineUUID(machine)
			pctx.SetMachineInfraID("vm-1")
			say("provisioned %s %s", pctx.GetRequestID(), pctx.GetTalosVersion())

			return nil
		}),
	}
}

func (m *maker) Deprovision(_ context.Context, _ *zap.Logger, state *vm, request *infrares.MachineRequest) error {
	say("deprovisioned %s schematic=%t", request.Metadata().ID(), state != nil && state.TypedSpec().Value.Status != "")

	return nil
}

func dynamic(ctx context.Context, endpoint, id string, options []client.Option) error {
	owner = id

	provider, err := infra.NewProvider(id, &maker{tries: map[resource.ID]int{}}, infra.ProviderConfig{
		Name: "Virtual", Description: "Machines out of nothing", Schema: "{}",
	})
	if err != nil {
		return err
	}

	say("provisioning")

	return provider.Run(ctx, zap.NewNop(),
		infra.WithOmniEndpoint(endpoint),
		infra.WithClientOptions(options...),
		infra.WithHealthCheckInterval(50*time.Millisecond),
		infra.WithHealthCheckFunc(func(context.Context) error { return errors.New("the hypervisor is warm") }),
	)
}
