################################################################################
#
# pilotlight
#
################################################################################

# A folder that buildroot/build makes of the commit, with its crates vendored in
# it: a commit cannot hold the hash of its own tarball.
PILOTLIGHT_VERSION = $(call qstrip,$(PILOTLIGHT_RELEASE))
PILOTLIGHT_SITE = $(call qstrip,$(PILOTLIGHT_TREE))
PILOTLIGHT_SITE_METHOD = local
PILOTLIGHT_LICENSE = Apache-2.0
PILOTLIGHT_LICENSE_FILES = LICENSE NOTICE

# Cargo.toml's profile "appliance": pkg-cargo builds "release" and sets these
# itself; ours come later. Paths of the build machine would make two builds of
# one commit differ.
PILOTLIGHT_CARGO_ENV = \
	CARGO_PROFILE_RELEASE_OPT_LEVEL=s \
	CARGO_PROFILE_RELEASE_LTO=off \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
	CARGO_TARGET_$(call UPPERCASE,$(RUSTC_TARGET_NAME))_RUSTFLAGS="--remap-path-prefix=$(@D)=/pilotlight --remap-path-prefix=$(BR_CARGO_HOME)=/cargo"

# post-image.sh writes the slots' first records with it.
PILOTLIGHT_DEPENDENCIES = host-pilotlight
HOST_PILOTLIGHT_CARGO_ENV = CARGO_PROFILE_RELEASE_LTO=off
HOST_PILOTLIGHT_CARGO_BUILD_OPTS = --bin pilotlight

define HOST_PILOTLIGHT_INSTALL_CMDS
	$(INSTALL) -D -m 0755 $(@D)/target/release/pilotlight $(HOST_DIR)/bin/pilotlight
endef

define PILOTLIGHT_INSTALL_INIT
	mv $(TARGET_DIR)/usr/bin/init $(TARGET_DIR)/init
endef
PILOTLIGHT_POST_INSTALL_TARGET_HOOKS += PILOTLIGHT_INSTALL_INIT

$(eval $(cargo-package))
$(eval $(host-cargo-package))
