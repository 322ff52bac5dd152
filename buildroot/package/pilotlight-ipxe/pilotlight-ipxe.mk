################################################################################
#
# pilotlight-ipxe
#
################################################################################

PILOTLIGHT_IPXE_VERSION = v2.0.0
PILOTLIGHT_IPXE_SITE = https://github.com/ipxe/ipxe.git
PILOTLIGHT_IPXE_SITE_METHOD = git
PILOTLIGHT_IPXE_LICENSE = GPL-2.0+ or UBDL
PILOTLIGHT_IPXE_LICENSE_FILES = COPYING COPYING.GPLv2 COPYING.UBDL
PILOTLIGHT_IPXE_DEPENDENCIES = host-xz

# Machines of the other architecture are served too, from a toolchain of the
# build host when it has one: PILOTLIGHT_IPXE_CROSS_arm64 or _x86_64.
ifeq ($(BR2_x86_64),y)
PILOTLIGHT_IPXE_TARGETS = \
	bin-x86_64-pcbios/undionly.kpxe:undionly.kpxe \
	bin-x86_64-efi/ipxe.efi:amd64/ipxe.efi \
	bin-x86_64-efi/snponly.efi:amd64/snp.efi
else
PILOTLIGHT_IPXE_TARGETS = \
	bin-arm64-efi/ipxe.efi:arm64/ipxe.efi \
	bin-arm64-efi/snponly.efi:arm64/snp.efi
endif

# The room for the init script: comment lines between two markers, as
# src/boot/ipxe_binary.rs looks for them. The compressed BIOS binary has none.
define PILOTLIGHT_IPXE_MAKE_ROOM
	{ \
		echo '#!ipxe'; \
		echo '# *PLACEHOLDER START*'; \
		for line in $$(seq 32); do printf '# %-61s\n' ''; done; \
		echo '# *PLACEHOLDER END*'; \
	} > $(@D)/room.ipxe
endef
PILOTLIGHT_IPXE_PRE_BUILD_HOOKS += PILOTLIGHT_IPXE_MAKE_ROOM

PILOTLIGHT_IPXE_MAKE_OPTS = \
	CROSS_COMPILE=$(TARGET_CROSS) \
	HOST_CC="$(HOSTCC) $(HOST_CFLAGS) $(HOST_LDFLAGS)" \
	BUILD_TIMESTAMP=$(SOURCE_DATE_EPOCH) \
	GITVERSION=$(PILOTLIGHT_IPXE_VERSION) \
	NO_ERROR=1 \
	V=1

define PILOTLIGHT_IPXE_BUILD_CMDS
	$(foreach target,$(PILOTLIGHT_IPXE_TARGETS), \
		$(TARGET_MAKE_ENV) $(MAKE) -C $(@D)/src $(PILOTLIGHT_IPXE_MAKE_OPTS) \
			$(if $(findstring -efi/,$(target)),EMBED=$(@D)/room.ipxe) \
			$(firstword $(subst :, ,$(target)))
	)
endef

define PILOTLIGHT_IPXE_INSTALL_TARGET_CMDS
	$(foreach target,$(PILOTLIGHT_IPXE_TARGETS), \
		$(INSTALL) -D -m 0644 $(@D)/src/$(firstword $(subst :, ,$(target))) \
			$(TARGET_DIR)/usr/lib/ipxe/$(lastword $(subst :, ,$(target)))
	)
	$(INSTALL) -D -m 0644 -t $(TARGET_DIR)/usr/share/licenses/ipxe \
		$(@D)/COPYING $(@D)/COPYING.GPLv2 $(@D)/COPYING.UBDL
endef

$(eval $(generic-package))
