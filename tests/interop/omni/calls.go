package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/cosi-project/runtime/pkg/resource"
	"github.com/cosi-project/runtime/pkg/resource/meta"
	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/siderolabs/omni/client/pkg/client"
	"github.com/siderolabs/omni/client/pkg/omni/resources/infra"
	"github.com/siderolabs/omni/client/pkg/omni/resources/omni"
	"github.com/siderolabs/omni/client/pkg/omni/resources/siderolink"
	"github.com/siderolabs/omni/client/pkg/omni/resources/system"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ledger counts what was held true, and keeps what was not.
type ledger struct {
	held   int
	broken []error
}

func (l *ledger) check(what string, holds bool) {
	if holds {
		l.held++
	} else {
		l.broken = append(l.broken, fmt.Errorf("%s does not hold", what))
	}
}

// watched collects the types of events until one destroys; the last bookmark before that is returned with them.
func watched(ctx context.Context, events <-chan []state.Event) ([]string, state.Bookmark, error) {
	var (
		seen     []string
		bookmark state.Bookmark
	)

	for {
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case batch := <-events:
			for _, event := range batch {
				seen = append(seen, event.Type.String())

				switch event.Type {
				case state.Errored:
					return nil, nil, event.Error
				case state.Destroyed:
					return seen, bookmark, nil
				case state.Created:
					bookmark = event.Bookmark
				}
			}
		}
	}
}

// calls does with a config patch request everything that a provider can do with a resource, and reads what it may read.
func calls(ctx context.Context, connected *client.Client, count *counter, provider string) error {
	st := connected.Omni().State()
	kind := infra.NewConfigPatchRequest("").Metadata()
	events, single, late := make(chan []state.Event), make(chan state.Event), make(chan []state.Event)

	if err := errors.Join(
		st.WatchKindAggregated(ctx, kind, events, state.WithBootstrapContents(true), state.WithBootstrapBookmark(true)),
		st.Watch(ctx, infra.NewConfigPatchRequest("a").Metadata(), single),
	); err != nil {
		return err
	}

	patch := infra.NewConfigPatchRequest("a")
	patch.Metadata().Labels().Set("rack", "1")

	if err := st.Create(ctx, patch); err != nil {
		return err
	}

	var ledger ledger

	ledger.check("a second create conflicts", state.IsConflictError(st.Create(ctx, infra.NewConfigPatchRequest("a"))))

	created, err := safe.StateGetByID[*infra.ConfigPatchRequest](ctx, st, "a")
	if err != nil {
		return err
	}

	label, _ := created.Metadata().Labels().Get(omni.LabelInfraProviderID)
	ledger.check("the provider's label is set", label == provider)

	updated, err := safe.StateUpdateWithConflicts(ctx, st, created.Metadata(), func(res *infra.ConfigPatchRequest) error {
		return res.TypedSpec().Value.SetUncompressedData([]byte("machine: {}"))
	})
	if err != nil {
		return err
	}

	stored, err := safe.StateGetByID[*infra.ConfigPatchRequest](ctx, st, "a")
	if err != nil {
		return err
	}

	data, err := stored.TypedSpec().Value.GetUncompressedData()
	if err != nil {
		return err
	}

	ledger.check("an update is stored", string(data.Data()) == "machine: {}")
	ledger.check("an update makes a version", stored.Metadata().Version().String() == "2")
	created.Metadata().Labels().Set("rack", "2")
	ledger.check("an update of an old version conflicts", state.IsConflictError(st.Update(ctx, created)))
	ledger.check("another owner may not destroy",
		state.IsOwnerConflictError(st.Destroy(ctx, created.Metadata(), state.WithDestroyOwner("somebody"))))
	ledger.check("another owner may not update",
		state.IsOwnerConflictError(st.Update(ctx, stored, state.WithUpdateOwner("somebody"))))

	for _, query := range []struct {
		option state.ListOption
		found  int
	}{
		{state.WithLabelQuery(resource.LabelEqual("rack", "1")), 1},
		{state.WithLabelQuery(resource.LabelEqual("rack", "2")), 0},
		{state.WithLabelQuery(resource.LabelExists("rack")), 1},
		{state.WithLabelQuery(resource.LabelExists("rack", resource.NotMatches)), 0},
		{state.WithLabelQuery(resource.LabelIn("rack", []string{"1", "7"})), 1},
		{state.WithIDQuery(resource.IDRegexpMatch(regexp.MustCompile("^a$"))), 1},
		{state.WithIDQuery(resource.IDRegexpMatch(regexp.MustCompile("^b"))), 0},
	} {
		list, listErr := st.List(ctx, kind, query.option)
		if listErr != nil {
			return listErr
		}

		ledger.check("a query finds", len(list.Items) == query.found)
	}

	if err = st.AddFinalizer(ctx, updated.Metadata(), "held"); err != nil {
		return err
	}

	ledger.check("a finalizer holds", state.IsConflictError(st.Destroy(ctx, updated.Metadata())))

	ready, err := st.Teardown(ctx, updated.Metadata())
	if err != nil {
		return err
	}

	ledger.check("with a finalizer it is not ready", !ready)

	torn, err := st.WatchFor(ctx, updated.Metadata(), state.WithPhases(resource.PhaseTearingDown))
	if err != nil {
		return err
	}

	ledger.check("a phase is expected",
		state.IsPhaseConflictError(st.Update(ctx, torn, state.WithExpectedPhase(resource.PhaseRunning))))

	if err = st.RemoveFinalizer(ctx, updated.Metadata(), "held"); err != nil {
		return err
	}

	if err = st.TeardownAndDestroy(ctx, updated.Metadata()); err != nil {
		return err
	}

	_, err = st.Get(ctx, updated.Metadata())
	ledger.check("what is destroyed is gone", state.IsNotFoundError(err))

	seen, bookmark, err := watched(ctx, events)
	if err != nil {
		return err
	}

	// That there was nothing at first is not told: a tombstone has no label of the provider's.
	ofOne := []string{}
	for len(ofOne) == 0 || ofOne[len(ofOne)-1] != state.Destroyed.String() {
		select {
		case event := <-single:
			ofOne = append(ofOne, event.Type.String())
		case <-ctx.Done():
			return ctx.Err()
		}
	}

	// What came after the creation comes again.
	if err = st.WatchKindAggregated(ctx, kind, late, state.WithKindStartFromBookmark(bookmark)); err != nil {
		return err
	}

	resumed, _, err := watched(ctx, late)
	if err != nil {
		return err
	}

	stale := make(chan []state.Event)
	stalled := st.WatchKindAggregated(ctx, kind, stale, state.WithKindStartFromBookmark([]byte("no bookmark")))
	ledger.check("a bookmark of somebody else is refused", state.IsInvalidWatchBookmarkError(stalled))

	if err = reads(ctx, st, provider, &ledger); err != nil {
		return err
	}

	schematic, err := connected.Management().CreateSchematicFromRaw(ctx, []byte("customization: {}\n"))
	if err != nil {
		return err
	}

	ledger.check("a schematic is made", len(schematic.GetSchematicId()) == 64)

	_, err = connected.Management().CreateServiceAccount(ctx, "infra-provider:other", "key", "InfraProvider", false)
	ledger.check("accounts are not made by providers", status.Code(err) == codes.PermissionDenied)

	if err = checks(ctx, count.connection(), &ledger); err != nil {
		return err
	}

	if err = errors.Join(ledger.broken...); err != nil {
		return err
	}

	say("of the kind: %s", strings.Join(seen, " "))
	say("of the one: %s", strings.Join(ofOne, " "))
	say("from the bookmark: %s", strings.Join(resumed, " "))
	say("checks: %d", ledger.held)

	return nil
}

// reads reads what Omni offers to providers, and tries what it does not.
func reads(ctx context.Context, st state.State, provider string, ledger *ledger) error {
	definitions, err := st.List(ctx, resource.NewMetadata(meta.NamespaceName, meta.ResourceDefinitionType, "", resource.VersionUndefined))
	if err != nil {
		return err
	}

	ledger.check("definitions are listed", len(definitions.Items) > 20)

	join, err := safe.StateGetByID[*siderolink.ProviderJoinConfig](ctx, st, provider)
	if err != nil {
		return err
	}

	ledger.check("the join config has a token", join.TypedSpec().Value.JoinToken != "")

	api, err := safe.StateGetByID[*siderolink.APIConfig](ctx, st, siderolink.ConfigID)
	if err != nil {
		return err
	}

	ledger.check("the machine API is named", api.TypedSpec().Value.MachineApiAdvertisedUrl != "")

	version, err := safe.StateGetByID[*system.SysVersion](ctx, st, system.SysVersionID)
	if err != nil {
		return err
	}

	ledger.check("the version is told", version.TypedSpec().Value.BackendVersion != "")

	features, err := safe.StateGetByID[*omni.FeaturesConfig](ctx, st, omni.FeaturesConfigID)
	if err != nil {
		return err
	}

	ledger.check("the image factory is named", features.TypedSpec().Value.ImageFactoryBaseUrl != "")
	ledger.check("requests are not made by providers", st.Create(ctx, infra.NewMachineRequest("mine")) != nil)
	ledger.check("a provider is one provider", st.Create(ctx, infra.NewProviderStatus("other")) != nil)

	_, err = safe.StateListAll[*omni.Cluster](ctx, st)
	ledger.check("clusters are not shown", status.Code(err) == codes.PermissionDenied)

	return nil
}
