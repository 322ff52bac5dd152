package main

import (
	"context"
	"errors"

	"github.com/cosi-project/runtime/pkg/controller"
	"github.com/cosi-project/runtime/pkg/controller/generic/qtransform"
	"github.com/cosi-project/runtime/pkg/controller/runtime"
	"github.com/cosi-project/runtime/pkg/resource"
	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/siderolabs/omni/client/api/omni/specs"
	"github.com/siderolabs/omni/client/pkg/infra/controllers"
	"github.com/siderolabs/omni/client/pkg/omni/resources/infra"
	"github.com/siderolabs/omni/client/pkg/omni/resources/omni"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// answer is the state of a machine that does at once what it is asked.
func answer(machine *specs.InfraMachineSpec, status *specs.InfraMachineStatusSpec) {
	accepted := machine.AcceptanceStatus == specs.InfraMachineConfigSpec_ACCEPTED
	status.PowerState = specs.InfraMachineStatusSpec_POWER_STATE_OFF

	if accepted && machine.PreferredPowerState != specs.InfraMachineSpec_POWER_STATE_OFF {
		status.PowerState = specs.InfraMachineStatusSpec_POWER_STATE_ON
	}

	status.ReadyToUse = accepted
	status.WipedNodeUniqueToken = machine.NodeUniqueToken

	if status.LastRebootId != machine.RequestedRebootId {
		status.LastRebootId = machine.RequestedRebootId
		status.LastRebootTimestamp = timestamppb.Now()
	}
}

// static runs a controller that turns each infra machine into its status, as Omni's bare-metal provider does.
func static(ctx context.Context, st state.State, id string) error {
	rt, err := runtime.NewRuntime(st, zap.NewNop())
	if err != nil {
		return err
	}

	statuses := qtransform.NewQController(
		qtransform.Settings[*infra.Machine, *infra.MachineStatus]{
			Name:              id + ".InfraMachineStatusController",
			MapMetadataFunc:   func(in *infra.Machine) *infra.MachineStatus { return infra.NewMachineStatus(in.Metadata().ID()) },
			UnmapMetadataFunc: func(out *infra.MachineStatus) *infra.Machine { return infra.NewMachine(out.Metadata().ID()) },
			TransformFunc: func(ctx context.Context, r controller.Reader, _ *zap.Logger, in *infra.Machine, out *infra.MachineStatus) error {
				access, err := safe.ReaderGetByID[*infra.BMCConfig](ctx, r, in.Metadata().ID())
				if err != nil && !state.IsNotFoundError(err) {
					return err
				}

				user := "nobody"
				if access != nil {
					user = access.TypedSpec().Value.GetConfig().GetIpmi().GetUsername()
				}

				answer(in.TypedSpec().Value, out.TypedSpec().Value)
				out.Metadata().Labels().Set("rack", "1")
				say("machine %s %s bmc=%s rebooted=%t", in.Metadata().ID(), in.TypedSpec().Value.AcceptanceStatus, user,
					out.TypedSpec().Value.LastRebootId != "")

				return nil
			},
			FinalizerRemovalFunc: func(_ context.Context, _ controller.Reader, _ *zap.Logger, in *infra.Machine) error {
				say("released %s", in.Metadata().ID())

				return nil
			},
		},
		qtransform.WithExtraMappedInput[*infra.BMCConfig](
			func(_ context.Context, _ *zap.Logger, _ controller.QRuntime, changed controller.ReducedResourceMetadata) ([]resource.Pointer, error) {
				return []resource.Pointer{infra.NewMachine(changed.ID()).Metadata()}, nil
			},
		),
	)

	health, err := controllers.NewProviderHealthStatusController(id, controllers.ProviderHealthStatusOptions{})
	if err != nil {
		return err
	}

	if err = errors.Join(rt.RegisterQController(statuses), rt.RegisterController(health)); err != nil {
		return err
	}

	status := infra.NewProviderStatus(id)
	status.TypedSpec().Value.Name = "Bare metal"
	status.Metadata().Labels().Set(omni.LabelIsStaticInfraProvider, "")

	if err = st.Create(ctx, status); err != nil {
		return err
	}

	say("answering")

	return rt.Run(ctx)
}
