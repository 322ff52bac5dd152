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

# Paths of the build machine would make two builds of one commit differ. The
# profile is Cargo.toml's: what pkg-cargo sets comes first and is overridden.
PILOTLIGHT_CARGO_ENV = \
	CARGO_PROFILE_RELEASE_LTO=thin \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=4 \
	CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
	CARGO_TARGET_$(call UPPERCASE,$(RUSTC_TARGET_NAME))_RUSTFLAGS="--remap-path-prefix=$(@D)=pilotlight --remap-path-prefix=$(BR_CARGO_HOME)=cargo"
PILOTLIGHT_CARGO_INSTALL_OPTS = --bins

define PILOTLIGHT_INSTALL_INIT
	mv $(TARGET_DIR)/usr/bin/init $(TARGET_DIR)/init
endef
PILOTLIGHT_POST_INSTALL_TARGET_HOOKS += PILOTLIGHT_INSTALL_INIT

$(eval $(cargo-package))
