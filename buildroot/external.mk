include $(sort $(wildcard $(BR2_EXTERNAL_PILOTLIGHT_PATH)/package/*/*.mk))

# Newer rustc finds its library by the real path of its own, where a link into
# the unpacked std component leads it astray.
define HOST_RUST_BIN_LIBSTD_EXTRACT
	mkdir -p $(@D)/std
	$(foreach f,$(HOST_RUST_BIN_EXTRA_DOWNLOADS), \
		$(call suitable-extractor,$(f)) $(HOST_RUST_BIN_DL_DIR)/$(f) | \
			$(TAR) -C $(@D)/std $(TAR_OPTIONS) -
	)
	mkdir -p $(@D)/rustc/lib/rustlib/$(RUSTC_HOST_NAME)/lib
	cp -al $(@D)/$(HOST_RUST_BIN_LIBSTD_HOST_PREFIX)/lib/rustlib/$(RUSTC_HOST_NAME)/lib/. \
		$(@D)/rustc/lib/rustlib/$(RUSTC_HOST_NAME)/lib/
endef
